"""KAD: by its definition, unbiased, with an interval that holds the true value."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.distances import estimate as estimates
from audio_diffusion.metrics.distances import kernel
from audio_diffusion.metrics.distances.estimate import draw_weights, resampled_means, spread
from audio_diffusion.metrics.distances.kernel import kad, kernel_distance, median_distance
from audio_diffusion.metrics.embeddings.embedding import Embedded


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embedded(vectors: Tensor, per_clip: int = 1) -> Embedded:
    return Embedded(vectors, torch.arange(len(vectors)) // per_clip, -(-len(vectors) // per_clip))


def by_definition(x: np.ndarray, y: np.ndarray, bandwidth: float | None = None) -> float:
    """Eq. 3 of Gretton et al. 2012 written out, with the median distance within y."""
    from scipy.spatial.distance import cdist, pdist

    if bandwidth is None:
        distances = np.sort(pdist(y))
        bandwidth = distances[(len(distances) - 1) // 2]
    kxx, kyy, kxy = (np.exp(-(cdist(a, b) ** 2) / (2 * bandwidth**2)) for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = sum(kxx[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    real = sum(kyy[i, j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return 100 * (within + real - 2 * kxy.mean())


@pytest.mark.parametrize(("n", "m"), [(30, 20), (7, 40), (2, 2)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_it_is_its_definition(n: int, m: int, offset: float) -> None:
    x, y = normal(n, 16) + 0.3 + offset, normal(m, 16, seed=1) * 1.3 + offset
    assert kernel_distance(x, y) == pytest.approx(by_definition(x.numpy(), y.numpy()), rel=1e-6)
    assert kernel_distance(x, y, 2.0) == pytest.approx(by_definition(x.numpy(), y.numpy(), 2.0), rel=1e-6)


def test_it_is_kadtks_formula_in_float32() -> None:
    """kadtk 1.1.0: float32, γ = 1 / (2·σ² + 1e-8), σ the lower median of pdist(y)."""
    x, y = normal(300, 128).relu().float() + 0.1, normal(200, 128, seed=1).relu().float()
    gamma = 1 / (2 * torch.pdist(y).median() ** 2 + 1e-8)
    (kxx, kyy, kxy) = (torch.exp(-gamma * torch.cdist(a, b) ** 2) for a, b in ((x, x), (y, y), (x, y)))
    off_diagonal = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kxx, kyy)]
    expected = 100 * (sum(off_diagonal) - 2 * kxy.mean())
    assert kernel_distance(x, y) == pytest.approx(expected.item(), rel=1e-4)
    assert kad(embedded(x), embedded(y)).value == pytest.approx(kernel_distance(x, y), rel=1e-6)


def test_it_is_unbiased() -> None:
    """The mean over pairs of small sets is 0 within its error for one distribution, and the large sets' for two."""
    nulls = [kernel_distance(normal(10, 8, seed=i), normal(10, 8, seed=1000 + i), 4.0) for i in range(300)]
    assert abs(np.mean(nulls)) < 4 * np.std(nulls) / math.sqrt(len(nulls))
    assert min(nulls) < 0
    shifted = [kernel_distance(normal(10, 8, seed=i) + 0.7, normal(10, 8, seed=1000 + i), 4.0) for i in range(300)]
    large = kernel_distance(normal(2000, 8, seed=5) + 0.7, normal(2000, 8, seed=6), 4.0)
    assert abs(np.mean(shifted) - large) < 4 * np.std(shifted) / math.sqrt(len(shifted)) + 0.02 * large


def test_blocks_and_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(250, 8) + 0.4, normal(230, 8, seed=1)
    whole = kad(embedded(x, 2), embedded(y, 2))
    monkeypatch.setattr(kernel, "_BLOCK", 64)
    blocked = kad(embedded(x, 2), embedded(y, 2))
    assert blocked.value == pytest.approx(whole.value, rel=1e-6)
    assert blocked.interval == pytest.approx(whole.interval, rel=1e-6)
    assert blocked.floor == pytest.approx(whole.floor, abs=1e-9)
    monkeypatch.setattr(kernel, "MAX_UNITS", 60)  # 125 clips in 60 groups
    grouped = kad(embedded(x, 2), embedded(y, 2))
    assert grouped.value == pytest.approx(whole.value, rel=1e-6)
    assert grouped.error == pytest.approx(whole.error, rel=0.3)


def test_the_median_of_many_is_that_of_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    y = normal(600, 8)
    assert median_distance(y) == pytest.approx(torch.pdist(y).median().item(), rel=1e-6)
    monkeypatch.setattr(kernel, "MAX_MEDIAN", 300)
    assert median_distance(y) == pytest.approx(torch.pdist(y).median().item(), rel=0.05)


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    """40 pairs of sets of 40 clips of 3 windows that resemble each other: 95 % are asked, so at least 33 of 40 hit."""

    def clips(seed: int, shift: float) -> Embedded:
        own, common = normal(120, 4, seed=seed), normal(40, 4, seed=seed + 500)
        return embedded(own + common.repeat_interleave(3, 0) + shift, 3)

    bandwidth = median_distance(clips(9, 0.0).vectors)
    truth = np.mean([kernel_distance(clips(10_000 + i, 0.8).vectors, clips(20_000 + i, 0.0).vectors, bandwidth)
                     for i in range(200)])  # fmt: skip
    hits, widths = 0, []
    for i in range(40):
        estimate = kad(clips(i, 0.8), clips(3000 + i, 0.0), seed=i, replicates=300)
        assert estimate.interval is not None
        low, high = estimate.interval
        hits += low <= truth <= high
        widths.append(high - low)
        assert low < estimate.value < high
    assert hits >= 33
    assert np.mean(widths) < 1.5 * truth  # and it says something


def test_replicates_are_not_biased() -> None:
    """Their mean is the estimate, although windows of a clip resemble each other: copies of a clip are not paired."""
    own, common = normal(150, 4), normal(50, 4, seed=1)
    x = embedded(0.3 * own + common.repeat_interleave(3, 0), 3)
    y = embedded(0.3 * normal(150, 4, seed=2) + normal(50, 4, seed=3).repeat_interleave(3, 0), 3)
    means = []
    for seed in range(3):
        estimate = kad(x, y, seed)
        assert estimate.interval is not None
        means.append((np.mean(estimate.interval) - estimate.value) / estimate.error)
    assert abs(np.mean(means)) < 1


def test_real_against_real_is_the_floor() -> None:
    reference = embedded(normal(400, 8), 2)
    estimate = kad(embedded(normal(200, 8, seed=1) + 1, 2), reference)
    assert abs(estimate.floor) < 0.02 * estimate.value
    same = kad(embedded(normal(200, 8, seed=2), 2), reference)
    assert same.interval is not None
    assert same.interval[0] < 0.1
    assert abs(same.value) < 0.05 * estimate.value


def test_too_few_are_refused_with_the_reason() -> None:
    few, many = embedded(normal(49, 4)), embedded(normal(150, 4, seed=1))
    estimate = kad(few, many)
    assert math.isnan(estimate.value)
    assert estimate.interval is None
    assert estimate.note == "too few: 49 generated windows, at least 50 are needed (KAD)"
    assert (estimate.windows, estimate.reference_windows) == (49, 150)
    with_silence = Embedded(few.vectors, few.clips, 49, 7)
    assert kad(with_silence, many).note.endswith("; 7 nearly silent windows were left out")
    long = Embedded(normal(150, 4), torch.arange(150) // 75, 2)
    estimate = kad(long, many)
    assert math.isfinite(estimate.value)
    assert estimate.interval is None
    assert "no interval: only 2 generated clips" in estimate.note


def test_a_reference_of_equal_windows_has_no_bandwidth() -> None:
    estimate = kad(embedded(normal(100, 4)), embedded(torch.ones(120, 4)))
    assert math.isnan(estimate.value)
    assert estimate.note == "KAD: the median distance within the reference is 0: at least half of its windows are equal"


def test_means_of_replicates_need_no_memory_for_all_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clips = normal(90), torch.arange(90) // 3
    whole = resampled_means(values, clips, 0, 2000)
    assert whole.mean().item() == pytest.approx(values.mean().item(), abs=0.02)
    of_clips = values.reshape(30, 3).mean(1)
    assert whole.std().item() == pytest.approx((of_clips.std(correction=0) / math.sqrt(30)).item(), rel=0.1)
    monkeypatch.setattr(estimates, "_DRAWN_AT_ONCE", 100)
    assert torch.equal(resampled_means(values, clips, 0, 2000), whole)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="one embedding"):
        kad(embedded(normal(100, 4)), Embedded(normal(100, 4), torch.arange(100), 100, name="other"))
    with pytest.raises(ValueError, match=r"vectors: expected \[at least 2, 4\], got \[5, 3\]"):
        kernel_distance(normal(5, 3), normal(5, 4))
    with pytest.raises(ValueError, match="the median distance within the reference is 0"):
        kernel_distance(normal(5, 3), torch.ones(5, 3))


def test_the_bootstrap_draws_whole_clips() -> None:
    weights = draw_weights(50, seed=0, replicates=2000)
    assert (weights.sum(1) == 50).all()
    assert weights.mean().item() == pytest.approx(1)
    assert weights.var().item() == pytest.approx(1 - 1 / 50, rel=0.05)
    assert torch.equal(weights, draw_weights(50, seed=0, replicates=2000))
    error, (low, high) = spread(torch.linspace(0, 1, 1001).double())
    assert (low, high) == pytest.approx((0.025, 0.975))
    assert error == pytest.approx(1 / math.sqrt(12), rel=0.01)
