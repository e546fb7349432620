"""UniPC (Zhao et al. 2023, arXiv:2302.04867): predictor and corrector with one network call per step."""

import math
from collections.abc import Callable
from itertools import zip_longest

from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.schedule import Grid, NoiseLevel, Schedule
from audio_diffusion.diffusion.solvers.multistep import bounded
from audio_diffusion.diffusion.solvers.solver import OnStep, reporting


def unipc(
    denoise: Denoiser,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = 20,
    order: int = 3,
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """Samples by UniPC: algorithms 5 to 8 with B_2(h) = e^h - 1 and data prediction.

    Each estimate of x0 first corrects the step before it and then gives the next step. The network is evaluated only at
    predicted x, so both are combined in one sum, and the corrected x is not computed separately:

        predicted_i     = base + Σ p·x0                        the step from level i - 1 to level i
        corrected_i     = base + Σ c·x0                        the same step, with the estimate made at level i as well
                        = predicted_i + Σ (c - p)·x0
        predicted_{i+1} = keep·corrected_i + Σ q·x0            keep = sigma_{i+1}/sigma_i
                        = keep·predicted_i + Σ (keep·(c - p) + q)·x0

    Args:
        order: order of the predictor, 1 to 4; that of the corrector is one higher.

    Raises:
        ValueError: for another order, or if the schedule has fewer steps.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1 to 4, got {order}")
    denoise, levels = reporting(denoise, on_step), schedule.levels(grid, num_steps)
    x = x_t * levels[0].std
    estimates: list[Tensor] = []  # estimates of x0, newest first
    for t, (keep, weights) in zip(levels, coefficients(levels, order), strict=False):
        estimates = [denoise(x, t.time).x0, *estimates[:order]]
        x.mul_(keep)
        for x0, weight in zip(estimates, weights, strict=False):
            x.add_(x0, alpha=weight)
    return denoise(x, levels[-1].time).x0


def coefficients(levels: list[NoiseLevel], order: int) -> list[tuple[float, list[float]]]:
    """Returns keep and weights of each step: x_s = keep·x_t + Σ weights·(estimates of x0, newest first)."""
    steps = []
    predictor: list[float] = []
    for i in range(len(levels) - 1):
        keep = levels[i + 1].sigma / levels[i].sigma
        # corrector of the last step; it has one estimate more than its predictor, the newest
        corrector = _weights(levels, i - 1, range(i, max(i - order - 1, -1), -1)) if i > 0 else []
        last, predictor = [0.0, *predictor], _weights(levels, i, range(i, max(i - order, -1), -1))
        weights = [keep * (c - p) + q for c, p, q in zip_longest(corrector, last, predictor, fillvalue=0.0)]
        steps.append((keep, weights))
    return steps


def _weights(levels: list[NoiseLevel], i: int, nodes: range) -> list[float]:
    """Weights of the estimates at the levels ``nodes``, or the first of them, in the step from level i to i + 1."""
    t, s = levels[i], levels[i + 1]
    h = s.lam - t.lam
    places = [(levels[n].lam - t.lam) / h for n in nodes]
    return [s.alpha * w for w in bounded(lambda count: _exponential_weights(places[:count], h), len(places))]


def _exponential_weights(nodes: list[float], h: float) -> list[float]:
    """Weights of values at the nodes in ∫_0^1 h·e^(-h(1-r))·p(r) dr, p the polynomial through them (eq. 5).

    One node is 0, where the step starts. With two the slope gets the paper's simpler half of 1 - e^-h (appendix F).
    """
    whole = -math.expm1(-h)
    if len(nodes) == 1:
        return [whole]
    if len(nodes) == 2:
        slope = 0.5 * whole / sum(nodes)
        return [slope if node else whole - slope for node in nodes]
    product = [1.0]  # Π (r - node) by its coefficients, of the highest power first
    for node in nodes:
        product = [a - node * b for a, b in zip([*product, 0.0], [0.0, *product], strict=True)]
    moments, weights = _moments(h, len(nodes)), []
    for node in nodes:
        # The Lagrange polynomial of a node: the product divided by r - node, and by the quotient's value there.
        coefficient = value = integral = 0.0
        for of_product, moment in zip(product, moments, strict=False):
            coefficient = coefficient * node + of_product  # Horner's scheme gives the quotient's coefficients
            value = value * node + coefficient
            integral += coefficient * moment
        weights.append(integral / value)
    return weights


def _moments(h: float, count: int) -> list[float]:
    """∫_0^1 h·e^(-h(1-r))·r^k dr for k = count - 1 .. 0.

    By parts, m_k = 1 - k/h·m_{k-1}: upwards for large h, and for small h, where that would cancel, downwards from the
    series -Σ (-h)^j·k!/(k+j)!, j = 1, 2 .., of the highest.
    """
    if h >= 1:
        moments = [-math.expm1(-h)]
        for k in range(1, count):
            moments.append(1 - k / h * moments[-1])
        return moments[::-1]
    top = count - 1
    moments, term = [0.0], 1.0
    for j in range(1, 25):
        term *= -h / (top + j)
        moments[0] -= term
    for k in range(top, 0, -1):
        moments.append((1 - moments[-1]) * h / k)
    return moments
