"""Fréchet audio distance, and its extrapolation to infinitely many windows."""

import math

import torch
from torch import Tensor

from audio_diffusion.diffusion.float64 import in_double
from audio_diffusion.metrics.distances.estimate import (
    REPLICATES,
    Estimate,
    check_pair,
    check_replicates,
    finish,
    halves,
    refused,
    resampled_means,
)
from audio_diffusion.metrics.embeddings.embedding import Embedded
from audio_diffusion.metrics.frechet import frechet_distance

SIZES = 8  # sizes of subsets of the extrapolation
SMALLEST = 0.4  # the smallest subset, as a part of all windows
RELATIVE = 1e-10  # least variance along an axis, as a part of the largest


def fad(generated: Embedded, reference: Embedded, seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Fréchet audio distance (Kilgour et al. 2019, arXiv:1812.08466, eq. 2) with a bootstrap interval and its floor.

    It is biased upwards, the more so the fewer windows there are: compare figures of equal counts only, or take
    `fad_infinite`. The interval is the value ± 1.96 standard deviations of replicates that draw whole clips of either
    set with replacement. In the replicates the distance is linearised in the windows' weights (by its influence
    function; Efron and Tibshirani 1993, chapter 21), since each would otherwise add the same bias again and cost two
    decompositions. The floor is the distance of two halves of the reference, each of at most as many windows as were
    generated.

    It is refused unless either set has more windows than a vector has components: the covariance is singular otherwise.
    """
    check_pair(generated, reference)
    check_replicates(replicates)
    width = generated.vectors.shape[1]
    if refusal := refused(generated, reference, width + 1, f"FAD: more than the {width} components of a vector"):
        return refusal
    value = frechet_distance(generated.vectors, reference.vectors)
    floor, notes = _floor(generated, reference, seed)
    estimate = finish(value, generated, reference, lambda: _replicates(generated, reference, seed, replicates), floor,
                      notes)  # fmt: skip
    return _symmetric(estimate, least=0.0)


def fad_infinite(generated: Embedded, reference: Embedded, seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """FAD extrapolated to infinitely many generated windows (Chong and Forsyth 2020, arXiv:1911.07023, section 3; for
    audio Gui et al. 2024, arXiv:2311.01616, section 3).

    The distance of subsets of 40 to 100 % of the windows is linear in 1/N to first order; the intercept of the line is
    the figure. The reference is used whole, so the bias of its own size stays. Subsets are made of whole clips, in an
    order that ``seed`` decides. The interval is that of `fad`, widened by the uncertainty of the line. The floor is the
    intercept for a half of the reference against the other one.

    It is refused unless the subset of 40 % of the generated windows and the reference have more windows than a vector
    has components.
    """
    check_pair(generated, reference)
    check_replicates(replicates)
    width = generated.vectors.shape[1]
    least = math.ceil((width + 1) / SMALLEST)
    reason = f"extrapolated FAD: its subset of {SMALLEST:.0%} needs more than the {width} components of a vector"
    if refusal := refused(generated, reference, least, reason):
        return refusal
    value, uncertainty = _intercept(generated, _Reference(reference.vectors), seed)
    floor, notes = math.nan, ["no floor: it needs twice as many real windows"]
    first, second = (reference.select(half) for half in halves(reference, seed))
    if min(len(first), len(second)) >= least:
        floor, notes = _intercept(first, _Reference(second.vectors), seed)[0], []
    estimate = finish(value, generated, reference, lambda: _replicates(generated, reference, seed, replicates), floor,
                      notes)  # fmt: skip
    return _symmetric(estimate, uncertainty)


def _symmetric(estimate: Estimate, uncertainty: float = 0.0, least: float = -math.inf) -> Estimate:
    """The estimate with an interval of ± 1.96 errors, to which an independent uncertainty is added."""
    if estimate.interval is None:
        return estimate
    error = math.hypot(estimate.error, uncertainty)
    interval = (max(least, estimate.value - 1.96 * error), estimate.value + 1.96 * error)
    return Estimate(estimate.value, error, interval, estimate.floor, estimate.windows, estimate.reference_windows,
                    estimate.note)  # fmt: skip


def _floor(generated: Embedded, reference: Embedded, seed: int) -> tuple[float, list[str]]:
    parts = [reference.select(half).vectors[: len(generated)] for half in halves(reference, seed)]
    least = reference.vectors.shape[1] + 1
    if min(len(part) for part in parts) < least:
        return math.nan, [f"no floor: half of the reference has fewer than {least} windows"]
    note = [] if all(len(part) == len(generated) for part in parts) else [
        f"the floor is of {len(parts[0])} against {len(parts[1])} windows"
    ]  # fmt: skip
    return frechet_distance(parts[0], parts[1]), note


class _Reference:
    """Mean and symmetric root of the covariance of the real windows, for distances of many sets from them."""

    def __init__(self, vectors: Tensor):
        vectors = in_double(vectors)
        self.mean, covariance = vectors.mean(0), torch.atleast_2d(torch.cov(vectors.T))
        values, axes = torch.linalg.eigh(covariance)
        self.trace, self.root = covariance.trace(), axes * values.clamp(min=0).sqrt() @ axes.T

    def distance(self, vectors: Tensor) -> float:
        """The Fréchet distance of windows ``[N, E]``."""
        vectors = in_double(vectors)
        covariance = torch.atleast_2d(torch.cov(vectors.T))
        mixed = torch.linalg.eigvalsh(self.root @ covariance @ self.root).clamp(min=0).sqrt().sum()
        shift = (vectors.mean(0) - self.mean).square().sum()
        return (shift + covariance.trace() + self.trace - 2 * mixed).item()


def _intercept(generated: Embedded, reference: _Reference, seed: int) -> tuple[float, float]:
    """Value of the line through (1/N, distance) at 1/N = 0, and its standard error."""
    order = torch.randperm(generated.num_clips, generator=torch.Generator().manual_seed(seed))
    vectors = generated.vectors[order.argsort()[generated.clips].argsort(stable=True)]
    total = len(vectors)
    inverse = torch.linspace(1 / total, 1 / (SMALLEST * total), SIZES, dtype=torch.float64)
    sizes = [math.ceil(1 / value - 1e-9) for value in inverse.tolist()]
    # a window at the beginning is in every subset: subsets of either end of the order halve that dependence
    distances = torch.tensor(
        [0.5 * (reference.distance(vectors[:n]) + reference.distance(vectors[total - n :])) for n in sizes]
    )
    x = torch.stack([torch.ones(SIZES, dtype=torch.float64), 1 / torch.tensor(sizes, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(x, distances.double()[:, None]).solution[:, 0]
    variance = (distances - x @ solution).square().sum() / (SIZES - 2)
    return solution[0].item(), (variance * torch.linalg.inv(x.T @ x)[0, 0]).sqrt().item()


def _replicates(generated: Embedded, reference: Embedded, seed: int, count: int) -> Tensor:
    """Bootstrap replicates of the linearised distance, less its value: float64 ``[count]``."""
    ours, theirs = _influence(generated.vectors, reference.vectors)
    moved = resampled_means(ours - ours.mean(), generated.clips, seed, count)
    return moved + resampled_means(theirs - theirs.mean(), reference.clips, seed + 1, count)


def _influence(vectors: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """How the distance changes with the weight of each window, up to a constant: float64 ``[N]`` and ``[M]``.

    The gradient by the mean is 2·(μ₁ - μ₂), by the covariance I - T with the optimal map from the first Gaussian to the
    second, T = Σ₂^½·(Σ₂^½·Σ₁·Σ₂^½)^-½·Σ₂^½ (Peyré and Cuturi 2019, arXiv:1803.00567, remark 2.31), and likewise for the
    other set with the inverse map.
    """
    ours, theirs = in_double(vectors), in_double(reference)
    shift = ours.mean(0) - theirs.mean(0)
    ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    values, axes = torch.linalg.eigh(torch.atleast_2d(torch.cov(theirs.T)))
    values = values.clamp(min=max(RELATIVE * values.amax().item(), 1e-30))
    root, inverse = axes * values.sqrt() @ axes.T, axes / values.sqrt() @ axes.T
    mixed, directions = torch.linalg.eigh(root @ torch.atleast_2d(torch.cov(ours.T)) @ root)
    mixed = mixed.clamp(min=max(RELATIVE * mixed.amax().item(), 1e-60))
    forwards = root @ (directions / mixed.sqrt() @ directions.T) @ root
    backwards = inverse @ (directions * mixed.sqrt() @ directions.T) @ inverse
    effects = []
    for centred, transport, sign in ((ours, forwards, 1.0), (theirs, backwards, -1.0)):
        curvature = centred.square().sum(1) - ((centred @ transport) * centred).sum(1)
        effects.append((2 * sign * centred @ shift + curvature).cpu())
    return effects[0], effects[1]
