"""Precision, recall, density and coverage on sets where they are known, and by their definitions."""

import math

import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.distances import neighbours
from audio_diffusion.metrics.distances.neighbours import NAMES, neighbour_shares, precision_recall_density_coverage
from audio_diffusion.metrics.embeddings.embedding import Embedded


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embedded(vectors: Tensor, per_clip: int = 1) -> Embedded:
    return Embedded(vectors, torch.arange(len(vectors)) // per_clip, -(-len(vectors) // per_clip))


def by_definition(x: Tensor, y: Tensor, k: int) -> dict[str, float]:
    """Written out, window by window."""

    def radius(points: Tensor, i: int) -> float:
        return sorted((points[i] - points[j]).norm().item() for j in range(len(points)) if j != i)[k - 1]

    ours, theirs = ([radius(points, i) for i in range(len(points))] for points in (x, y))
    distance = [[(a - b).norm().item() for b in y] for a in x]
    n, m = range(len(x)), range(len(y))
    return {
        "precision": sum(any(distance[i][j] <= theirs[j] for j in m) for i in n) / len(x),
        "recall": sum(any(distance[i][j] <= ours[i] for i in n) for j in m) / len(y),
        "density": sum(distance[i][j] <= theirs[j] for i in n for j in m) / (k * len(x)),
        "coverage": sum(any(distance[i][j] <= theirs[j] for i in n) for j in m) / len(y),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [7, 2048])
def test_they_are_their_definitions(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    x, y = 0.8 * normal(30, 3) + 0.6, normal(25, 3, seed=1)
    assert neighbour_shares(x, y, k).values() == pytest.approx(by_definition(x, y, k))


def test_known_sets() -> None:
    real = normal(1000, 8)
    same = neighbour_shares(normal(1000, 8, seed=1), real).values()
    assert same["density"] == pytest.approx(1, abs=0.12)
    assert same["coverage"] > 0.9  # 1 - 2^-5 is expected (Naeem et al., lemma 2)
    assert same["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    far = neighbour_shares(normal(1000, 8, seed=1) + 20, real).values()
    assert far == dict.fromkeys(NAMES, 0.0)
    collapsed = neighbour_shares(0.01 * normal(1000, 8, seed=1), real).values()
    assert collapsed["precision"] > 0.9
    assert collapsed["recall"] < 0.05
    assert collapsed["coverage"] < 0.6
    two_modes = torch.cat([normal(500, 8), normal(500, 8, seed=2) + 30])
    one_of_two = neighbour_shares(normal(1000, 8, seed=1), two_modes).values()
    assert one_of_two["coverage"] == pytest.approx(0.5, abs=0.03)
    assert one_of_two["density"] == pytest.approx(1, abs=0.15)


def test_an_outlier_fools_precision_and_not_density() -> None:
    real = torch.cat([normal(200, 4), torch.full((1, 4), 40.0).double()])  # its ball is huge
    made = normal(200, 4, seed=1) + 30
    shares = neighbour_shares(made, real).values()
    assert shares["precision"] == 1
    assert shares["density"] == pytest.approx(0.2)


def test_intervals_floors_and_counts() -> None:
    generated, reference = embedded(normal(300, 4) + 0.5, 3), embedded(normal(600, 4, seed=1), 3)
    estimates = precision_recall_density_coverage(generated, reference)
    assert tuple(estimates) == NAMES
    values = neighbour_shares(generated.vectors, reference.vectors).values()
    for name, estimate in estimates.items():
        assert estimate.value == values[name]
        assert estimate.interval is not None
        assert estimate.interval[0] < estimate.value < estimate.interval[1]
        assert (estimate.windows, estimate.reference_windows) == (300, 600)
        assert 0.5 < estimate.floor < 1.3
    # the error of a share of independent windows is known
    share = precision_recall_density_coverage(embedded(generated.vectors), reference)["precision"]
    assert share.error == pytest.approx(math.sqrt(share.value * (1 - share.value) / 300), rel=0.1)


def test_too_few_are_refused_with_the_reason() -> None:
    estimates = precision_recall_density_coverage(embedded(normal(99, 4)), embedded(normal(200, 4)))
    assert all(math.isnan(estimate.value) for estimate in estimates.values())
    assert all("99 generated windows" in estimate.note for estimate in estimates.values())
    with pytest.raises(ValueError, match=r"vectors: expected \[at least 6, 4\], got \[5, 4\]"):
        neighbour_shares(normal(5, 4), normal(50, 4))
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        neighbour_shares(normal(5, 4), normal(50, 4), 0)
