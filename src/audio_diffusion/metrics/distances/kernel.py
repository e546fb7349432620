"""Kernel audio distance: the headline, as it is unbiased and can be used from about 100 windows."""

import math

import torch
from torch import Tensor

from audio_diffusion.diffusion.float64 import in_double
from audio_diffusion.metrics.distances.estimate import (
    REPLICATES,
    Estimate,
    check_pair,
    check_replicates,
    draw_weights,
    finish,
    refused,
    without_number,
)
from audio_diffusion.metrics.embeddings.embedding import Embedded

SCALE = 100.0
MIN_WINDOWS = 50  # the estimate is unbiased: fewer windows than some 100 widen the interval, no more
MAX_MEDIAN = 4000  # windows whose distances to each other are sorted for the median
MAX_UNITS = 2000  # units that the bootstrap draws from; more clips are put together at random
FLOOR_SPLITS = 20
_BLOCK = 2048  # rows of a block of the kernel's matrix


def median_distance(vectors: Tensor, seed: int = 0) -> float:
    """Median Euclidean distance between two of the vectors ``[N, E]`` (the lower one of an even number of pairs).

    Of more than 4,000 vectors, as many are drawn.

    Raises:
        ValueError: for fewer than two vectors, or if the median is 0.
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f"vectors: expected [at least 2, E], got {list(vectors.shape)}")
    if len(vectors) > MAX_MEDIAN:
        drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:MAX_MEDIAN]
        vectors = vectors[drawn]
    vectors = in_double(vectors)
    vectors = vectors - vectors.mean(0)
    norms = vectors.square().sum(1)
    rows = [
        (norms[i : i + _BLOCK, None] + norms - 2 * vectors[i : i + _BLOCK] @ vectors.T).float()
        for i in range(0, len(vectors), _BLOCK)
    ]
    pairs = [torch.ones_like(row, dtype=torch.bool).triu(1 + i * _BLOCK) for i, row in enumerate(rows)]
    squares = torch.cat([row[pair] for row, pair in zip(rows, pairs, strict=True)])
    median = squares.clamp(min=0).median().sqrt().item()
    if median <= 1e-6 * max(norms.amax().sqrt().item(), 1e-30):
        raise ValueError("the median distance within the reference is 0: at least half of its windows are equal")
    return median


def kernel_distance(vectors: Tensor, reference: Tensor, bandwidth: float | None = None) -> float:
    """100 times the unbiased squared maximum mean discrepancy with a Gaussian kernel, KAD (Chung et al. 2025,
    arXiv:2502.15602, section 3; the estimator is eq. 3 of Gretton et al. 2012).

    It is 0 on average for two sets of one distribution, so it may be negative, and at most 200. It equals kadtk 1.1.0's
    ``calc_kernel_audio_distance(vectors, reference)``. (kadtk's own command passes the two sets in the other order, and
    so takes the bandwidth from the generated clips.)

    Args:
        vectors: of generated windows, ``[N, E]``.
        reference: of real windows, ``[M, E]``.
        bandwidth: of the kernel exp(-d²/(2·bandwidth²)); None for the median distance within the reference.

    Raises:
        ValueError: for other shapes, fewer than two windows in a set, or a reference whose median distance is 0.
    """
    for name, value in (("vectors", vectors), ("reference", reference)):
        if value.ndim != 2 or len(value) < 2 or value.shape[1] != reference.shape[-1]:
            raise ValueError(f"{name}: expected [at least 2, {reference.shape[-1]}], got {list(value.shape)}")
    bandwidth = median_distance(reference) if bandwidth is None else bandwidth
    n, m = len(vectors), len(reference)
    one = torch.zeros(n, dtype=torch.int64), torch.zeros(m, dtype=torch.int64)
    within = _sums(vectors, vectors, one[0], one[0], 1, 1, bandwidth).item() - n
    real = _sums(reference, reference, one[1], one[1], 1, 1, bandwidth).item() - m
    between = _sums(vectors, reference, one[0], one[1], 1, 1, bandwidth).item()
    return SCALE * (within / (n * (n - 1)) + real / (m * (m - 1)) - 2 * between / (n * m))


def kad(generated: Embedded, reference: Embedded, seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """KAD with a bootstrap interval and its floor.

    The interval is the central 95 % of replicates that draw whole clips of either set with replacement; pairs of a clip
    with its own copy are left out of each replicate, so that the replicates are not biased either. The bandwidth stays
    that of the reference. The floor is the mean over 20 splits of the reference into halves. Windows of one clip
    resemble each other and are paired, as kadtk pairs them, so figures of few long clips lie a little above 0: the
    floor of halves more so than the figure of the whole reference.

    It is refused for fewer than 50 windows of either set, and if at least half of the real windows are equal.
    """
    check_pair(generated, reference)
    check_replicates(replicates)
    if refusal := refused(generated, reference, MIN_WINDOWS, "KAD"):
        return refusal
    try:
        bandwidth = median_distance(reference.vectors, seed)
    except ValueError as error:
        return without_number(generated, reference, f"KAD: {error}")
    ours, theirs = _Units(generated, seed), _Units(reference, seed + 1)
    within = _pair_sums(ours, ours, bandwidth)
    real = _pair_sums(theirs, theirs, bandwidth)
    between = _pair_sums(ours, theirs, bandwidth)

    def distance(w: Tensor, v: Tensor) -> Tensor:
        """KAD for each row of weights of the generated and of the real units."""
        cross = ((w @ between) * v).sum(1) / ((w @ ours.sizes) * (v @ theirs.sizes))
        return SCALE * (_mean_of_pairs(within, w, ours) + _mean_of_pairs(real, v, theirs) - 2 * cross)

    def draw() -> Tensor:
        w, v = (draw_weights(units.count, seed + i, replicates) for i, units in ((2, ours), (3, theirs)))
        return distance(w, v)

    value = distance(torch.ones(1, ours.count).double(), torch.ones(1, theirs.count).double()).item()
    floor = _floor(real, theirs, seed)
    notes = [] if math.isfinite(floor) else ["no floor: the reference has fewer than 4 clips"]
    return finish(value, generated, reference, draw, floor, notes)


class _Units:
    """The units that the bootstrap draws: clips, or groups of clips if there are many."""

    def __init__(self, embedded: Embedded, seed: int):
        present, clips = embedded.clips.unique(return_inverse=True)
        if len(present) > MAX_UNITS:
            order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
            clips = order[clips] % MAX_UNITS
        self.vectors, self.unit, self.count = embedded.vectors, clips, min(len(present), MAX_UNITS)
        self.sizes = torch.bincount(clips, minlength=self.count).double()


def _pair_sums(a: _Units, b: _Units, bandwidth: float) -> Tensor:
    return _sums(a.vectors, b.vectors, a.unit, b.unit, a.count, b.count, bandwidth)


def _sums(x: Tensor, y: Tensor, unit_x: Tensor, unit_y: Tensor, num_x: int, num_y: int, bandwidth: float) -> Tensor:
    """Sums of the kernel over the windows of each pair of units, float64 ``[num_x, num_y]``, block by block."""
    centre = in_double(y).mean(0)
    x, y = in_double(x) - centre, in_double(y) - centre
    norms_x, norms_y = x.square().sum(1), y.square().sum(1)
    sums = torch.zeros(num_x, num_y, dtype=torch.float64, device=x.device)
    unit_x, unit_y = unit_x.to(x.device), unit_y.to(x.device)
    for i in range(0, len(x), _BLOCK):
        rows = slice(i, i + _BLOCK)
        by_column = torch.zeros(len(x[rows]), num_y, dtype=torch.float64, device=x.device)
        for j in range(0, len(y), _BLOCK):
            columns = slice(j, j + _BLOCK)
            squares = norms_x[rows, None] + norms_y[columns] - 2 * x[rows] @ y[columns].T
            by_column.index_add_(1, unit_y[columns], (squares.clamp(min=0) / (-2 * bandwidth**2)).exp())
        sums.index_add_(0, unit_x[rows], by_column)
    return sums.cpu()


def _mean_of_pairs(sums: Tensor, weights: Tensor, units: _Units) -> Tensor:
    """Mean of the kernel over pairs of different windows, for each row of weights ``[R, units]``.

    The copies of a unit that is drawn several times are not paired with each other: with windows of units a, b,
    Σ_{a≠b} w_a·w_b·Σ k_ij + Σ_a w_a·Σ_{i≠j} k_ij, divided by the number of these pairs.
    """
    sizes, own = units.sizes, sums.diagonal()
    total = ((weights @ sums) * weights).sum(1) - weights.square() @ own + weights @ (own - sizes)  # k_ii = 1
    pairs = (weights @ sizes).square() - weights.square() @ sizes.square() + weights @ (sizes.square() - sizes)
    return total / pairs


def _floor(real: Tensor, units: _Units, seed: int) -> float:
    """Mean KAD of the two halves of the reference, from the sums that are there already."""
    if units.count < 4:
        return math.nan
    generator = torch.Generator().manual_seed(seed + 4)
    first = torch.zeros(FLOOR_SPLITS, units.count, dtype=torch.float64)
    for row in first:
        row[torch.randperm(units.count, generator=generator)[: units.count // 2]] = 1
    second = 1 - first
    cross = ((first @ real) * second).sum(1) / ((first @ units.sizes) * (second @ units.sizes))
    both = _mean_of_pairs(real, first, units) + _mean_of_pairs(real, second, units) - 2 * cross
    return SCALE * both[both.isfinite()].mean().item()
