"""Ancestral sampling (DDPM, Ho et al. 2020, arXiv:2006.11239)."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.schedule import Grid, Schedule, added_variance
from audio_diffusion.diffusion.solvers.solver import OnStep, reporting


def ddpm(
    denoise: Denoiser,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = None,
    variance: Literal["beta", "beta_tilde"] = "beta",
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDPM algorithm 2: the posterior of eq. 7 with fresh noise, none at the last step.

    With fewer steps than T, ᾱ is taken at the visited times, which makes β_t = 1 - ᾱ_t/ᾱ_s (Nichol & Dhariwal 2021,
    arXiv:2102.09672, eq. 19). In any process it is Kingma et al. 2021, arXiv:2107.00630, eqs. 32 and 33.

    Args:
        num_steps: number of steps; None for the schedule's full chain.
        variance: σ_t² = β_t ("beta") or β̃_t = (1 - ᾱ_s)/(1 - ᾱ_t)·β_t ("beta_tilde"), DDPM section 3.2.

    Raises:
        ValueError: if ``variance`` is neither, or the schedule has fewer steps.
    """
    if variance not in ("beta", "beta_tilde"):
        raise ValueError(f'variance: expected "beta" or "beta_tilde", got {variance!r}')
    denoise, levels = reporting(denoise, on_step), schedule.levels(grid, num_steps)
    x = x_t * levels[0].std
    for t, s in pairwise(levels):
        x0 = denoise(x, t.time).x0
        # the mean of q(x_s | x_t, x0), eq. 7
        beta = added_variance(t, s)
        x.mul_(t.alpha / s.alpha * (s.sigma / t.sigma) ** 2).add_(x0, alpha=s.alpha * beta / t.sigma**2)
        # and noise of its variance
        x.add_(draw_noise(), alpha=beta**0.5 * (1 if variance == "beta" else s.sigma / t.sigma))
    return denoise(x, levels[-1].time).x0
