"""FAD: scipy's formula, its extrapolation, its interval against a bootstrap that computes it anew each time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.distances.estimate import draw_weights
from audio_diffusion.metrics.distances.frechet import fad, fad_infinite
from audio_diffusion.metrics.embeddings.embedding import Embedded
from audio_diffusion.metrics.frechet import frechet_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(count: int, width: int, seed: int) -> Tensor:
    """Correlated components of different variance."""
    return normal(count, width, seed=seed) @ (normal(width, width, seed=99) * torch.linspace(0.2, 2, width))


def embedded(vectors: Tensor, per_clip: int = 1) -> Embedded:
    return Embedded(vectors, torch.arange(len(vectors)) // per_clip, -(-len(vectors) // per_clip))


@pytest.mark.parametrize("width", [1, 5, 60])
def test_it_is_scipys_formula(width: int) -> None:
    from scipy.linalg import sqrtm

    x, y = mixed(400, width, 0) * 1.2 + 0.3, mixed(300, width, 1)
    covariances = [np.atleast_2d(np.cov(a.numpy(), rowvar=False)) for a in (x, y)]
    root = np.atleast_2d(sqrtm(covariances[0] @ covariances[1])).real
    means = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    estimate = fad(embedded(x), embedded(y))
    assert estimate.value == pytest.approx(expected, rel=1e-6)
    assert estimate.value == frechet_distance(x, y)


def test_the_interval_is_that_of_a_bootstrap() -> None:
    """The linearised replicates spread as much as replicates whose distance is computed anew."""
    x, y = embedded(mixed(300, 4, 0) + 2, 3), embedded(mixed(360, 4, 1) * 1.3, 3)
    estimate = fad(x, y)
    distances = []
    for ours, theirs in zip(draw_weights(100, 5, 300), draw_weights(120, 6, 300), strict=True):
        drawn = [
            part.vectors.repeat_interleave(weights.long()[part.clips], 0) for part, weights in ((x, ours), (y, theirs))
        ]
        distances.append(frechet_distance(*drawn))
    assert estimate.error == pytest.approx(np.std(distances), rel=0.2)
    assert estimate.interval == pytest.approx(
        (estimate.value - 1.96 * estimate.error, estimate.value + 1.96 * estimate.error)
    )


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    truth = 4 * 0.75**2 + 4 * 0.5**2
    hits = 0
    for i in range(60):
        estimate = fad(embedded(1.5 * normal(200, 4, seed=i) + 0.75), embedded(normal(200, 4, seed=500 + i)), i, 200)
        assert estimate.interval is not None
        hits += estimate.interval[0] <= truth <= estimate.interval[1]
    assert hits >= 50


def test_the_extrapolated_one_loses_the_bias() -> None:
    """Of 400 windows of 32 components: the distance of a Gaussian from itself is 0, of one shifted by 1 in each, 32."""
    reference = embedded(normal(8000, 32, seed=50))
    for shift in (0.0, 1.0):
        plain, extrapolated = [], []
        for seed in range(4):
            generated = embedded(normal(400, 32, seed=seed) + shift, 2)
            plain.append(fad(generated, reference, replicates=2).value)
            extrapolated.append(fad_infinite(generated, reference, seed, replicates=2).value)
        bias, rest = np.mean(plain) - 32 * shift**2, np.mean(extrapolated) - 32 * shift**2
        error = np.std(extrapolated) / math.sqrt(4)
        assert bias > 0.5
        assert abs(rest) < max(0.35 * bias, 3 * error)


def test_floor_counts_and_notes() -> None:
    generated, reference = embedded(normal(100, 4) + 1), embedded(normal(300, 4, seed=1))
    estimate = fad(generated, reference)
    assert (estimate.windows, estimate.reference_windows) == (100, 300)
    assert 0 < estimate.floor < 0.2 * estimate.value
    assert estimate.note == ""
    assert fad(reference, generated).note == "the floor is of 50 against 50 windows"
    infinite = fad_infinite(generated, reference)
    assert abs(infinite.floor) < 0.2 * infinite.value
    assert infinite.error >= estimate.error


def test_too_few_are_refused_with_the_reason() -> None:
    estimate = fad(embedded(normal(32, 32)), embedded(normal(200, 32)))
    assert math.isnan(estimate.value)
    assert estimate.note == (
        "too few: 32 generated windows, at least 33 are needed (FAD: more than the 32 components of a vector)"
    )
    estimate = fad_infinite(embedded(normal(60, 32)), embedded(normal(200, 32)))
    assert math.isnan(estimate.value)
    assert "60 generated windows, at least 83 are needed" in estimate.note
    estimate = fad(embedded(normal(40, 32)), embedded(normal(50, 32)))
    assert math.isnan(estimate.floor)
    assert "no floor: half of the reference has fewer than 33 windows" in estimate.note


def test_components_that_are_always_zero_do_no_harm() -> None:
    x, y = (torch.cat([mixed(200, 4, seed), torch.zeros(200, 3)], 1) for seed in (0, 1))
    estimate = fad(embedded(x + 1), embedded(y))
    assert estimate.value == pytest.approx(7 - 4 + frechet_distance(x[:, :4] + 1, y[:, :4]), rel=1e-6)
    assert math.isfinite(estimate.error)
    constant = fad(embedded(mixed(200, 4, 0)), embedded(torch.ones(200, 4)))
    assert math.isfinite(constant.value)
