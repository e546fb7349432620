"""DPM-Solver++ multistep (Lu et al. 2022, arXiv:2211.01095): 2M and 3M, and with noise SDE-2M and SDE-3M."""

import math
from collections.abc import Callable

from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.schedule import Grid, NoiseLevel, Schedule
from audio_diffusion.diffusion.solvers.multistep import bounded
from audio_diffusion.diffusion.solvers.solver import OnStep, reporting


def dpmpp(
    denoise: Denoiser,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = 20,
    order: int = 2,
    eta: float = 0.0,
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_s = σ_s/σ_t·e^(-ηh)·x_t + α_s·∫ of x0 extrapolated from the last ``order`` estimates (eqs. 9 and 14,
    algorithm 2), plus noise of variance σ_s²·(1 - e^(-2ηh)); h = λ_s - λ_t.

    Args:
        order: 2 (2M) or 3 (3M). Order 2 takes the midpoint's form, as the paper does.
        eta: 0 follows the probability flow, 1 the reverse SDE.

    Raises:
        ValueError: if ``order`` is neither, ``eta`` is negative, or the schedule has fewer steps.
    """
    if order not in (2, 3):
        raise ValueError(f"order: expected 2 or 3, got {order}")
    if eta < 0:
        raise ValueError(f"eta: expected 0 or more, got {eta}")
    denoise, levels = reporting(denoise, on_step), schedule.levels(grid, num_steps)
    x = x_t * levels[0].std
    estimates: list[Tensor] = []  # estimates of x0, newest first
    for i in range(len(levels) - 1):
        estimates = [denoise(x, levels[i].time).x0, *estimates[: order - 1]]
        keep, weights, std = coefficients(levels, i, order, eta)
        x.mul_(keep)
        for x0, weight in zip(estimates, weights, strict=False):
            x.add_(x0, alpha=weight)
        if std > 0:
            x.add_(draw_noise(), alpha=std)
    return denoise(x, levels[-1].time).x0


def coefficients(levels: list[NoiseLevel], i: int, order: int, eta: float) -> tuple[float, list[float], float]:
    """keep, weights and std of the step from level i to i + 1.

    x_s = keep·x_t + Σ weights·(estimates of x0, newest first) + std·(fresh noise)
    """
    t, s = levels[i], levels[i + 1]
    h = s.lam - t.lam
    ages = [
        (t.lam - levels[n].lam) / h for n in range(i, max(i - order, -1), -1)
    ]  # distances of the estimates from t, in steps
    weights = bounded(
        lambda count: _adams(ages[:count], h * (1 + eta), midpoint=order == 2), len(ages), stochastic=eta > 0
    )
    keep, std = s.sigma / t.sigma * math.exp(-eta * h), s.sigma * (-math.expm1(-2 * eta * h)) ** 0.5
    return keep, [s.alpha * weight for weight in weights], std


def _adams(ages: list[float], decay: float, midpoint: bool) -> list[float]:
    """∫_0^1 decay·e^(-decay·(1-r))·p(r) dr as weights, p the polynomial through the estimates; decay is h·(1 + η)."""
    whole = -math.expm1(-decay)
    phi_2 = 1 - whole / decay
    if len(ages) == 1:
        return [whole]
    if len(ages) == 2:
        slope = (0.5 * whole if midpoint else phi_2) / ages[1]
        return [whole + slope, -slope]
    # contribution of the second difference to the slope; the paper's code takes half of (1 - 2·phi_2/decay): order 2
    bend = (phi_2 * ages[1] + 1 - 2 * phi_2 / decay) / ages[2]
    newer, older = (phi_2 + bend) / ages[1], bend / (ages[2] - ages[1])
    return [whole + newer, -newer - older, older]
