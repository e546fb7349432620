"""DDIM (Song et al. 2020, arXiv:2010.02502), which is also Euler's method."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.schedule import Grid, NoiseLevel, Schedule, added_variance
from audio_diffusion.diffusion.solvers.solver import OnStep, reporting


def coefficients(t: NoiseLevel, s: NoiseLevel, eta: float = 0.0) -> tuple[float, float, float]:
    """keep, weight and std of a step from t to s, x_s = keep·x_t + weight·x0 + std·(fresh noise).

    Eq. 12 is x_s = alpha_s·x0 + √(sigma_s² - std²)·noise + std·(fresh noise), std that of eq. 16; its noise is written
    as (x_t - alpha_t·x0)/sigma_t.
    """
    std = eta * s.sigma / t.sigma * added_variance(t, s) ** 0.5
    keep = max(s.sigma**2 - std**2, 0.0) ** 0.5 / t.sigma
    return keep, s.alpha - keep * t.alpha, std


def ddim(
    denoise: Denoiser,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = 50,
    eta: float = 0.0,
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (eqs. 12 and 16); deterministic at eta = 0, DDPM's β̃ chain at 1.

    At eta = 0 it is Euler's method, both on rectified flow's dx/dt = noise - x0 and on EDM's dx/dσ = noise (eq. 14).

    Raises:
        ValueError: if ``eta`` lies outside [0, 1], or the schedule has fewer steps.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    denoise, levels = reporting(denoise, on_step), schedule.levels(grid, num_steps)
    x = x_t * levels[0].std
    for t, s in pairwise(levels):
        x0 = denoise(x, t.time).x0
        keep, weight, std = coefficients(t, s, eta)
        x.mul_(keep).add_(x0, alpha=weight)
        if std > 0:
            x.add_(draw_noise(), alpha=std)
    return denoise(x, levels[-1].time).x0
