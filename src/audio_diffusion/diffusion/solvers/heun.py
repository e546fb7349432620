"""Heun's method with churn, EDM's solver (Karras et al. 2022, arXiv:2206.00364)."""

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.schedule import Grid, NoiseLevel, Schedule, added_variance
from audio_diffusion.diffusion.solvers.solver import OnStep, reporting

#: Largest fall of sigma/alpha over which Heun's method corrects Euler's step: the longest step of EDM's own grid of ten
#: (0.02 to 0.002). The correction weighs the change in noise by half of this fall, and beyond it dominates the step.
_LONGEST_CORRECTED = 12.0


def heun(
    denoise: Denoiser,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = 18,
    churn: float = 0.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    churn_noise: float = 1.003,
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """EDM algorithm 2 for any alpha_t, with 2·num_steps - 1 network calls.

    The last step, to t = 0, returns the estimate of x0. Steps over which sigma/alpha falls by more than a factor of 12
    are Euler steps.

    Args:
        churn: S_churn; 0 is deterministic, 40 and 80 are the paper's.
        churn_min: noise level sigma/alpha below which no noise is added (S_min).
        churn_max: noise level above which no noise is added (S_max).
        churn_noise: factor on the noise added (S_noise).

    Raises:
        ValueError: if ``churn`` is negative, or the schedule has fewer steps.
    """
    if churn < 0:
        raise ValueError(f"churn: expected 0 or more, got {churn}")
    denoise, levels = reporting(denoise, on_step), schedule.levels(grid, num_steps)
    gamma = min(churn / len(levels), 2**0.5 - 1)

    def churned(x: Tensor, level: NoiseLevel) -> NoiseLevel:
        """Adds noise to x, up to (1 + gamma)·sigma/alpha, and returns the level reached; lines 5 and 6."""
        if not (gamma > 0 and churn_min <= level.sigma / level.alpha <= churn_max):
            return level
        higher = schedule.level_of_log_snr(-2 * (math.log1p(gamma) - level.lam))
        if higher.time <= level.time:
            return level
        std = added_variance(higher, level) ** 0.5
        x.mul_(higher.alpha / level.alpha).add_(draw_noise(), alpha=churn_noise * std)
        return higher

    x = x_t * levels[0].std
    for level, s in pairwise(levels):
        t = churned(x, level)
        x0, noise = denoise(x, t.time)
        # Euler's step, which keeps pure noise; lines 7 and 8
        keep = s.sigma / t.sigma
        x.mul_(keep).add_(x0, alpha=s.alpha - keep * t.alpha)
        # the trapezoidal rule: half of the change in noise over the step; lines 10 and 11
        if t.sigma / t.alpha < 1e6 and s.alpha * level.sigma / level.alpha <= _LONGEST_CORRECTED * s.sigma:
            half = 0.5 * (s.sigma - s.alpha * t.sigma / t.alpha)
            x.add_(denoise(x, s.time).noise, alpha=half).sub_(noise, alpha=half)
    last = churned(x, levels[-1])
    return denoise(x, last.time).x0
