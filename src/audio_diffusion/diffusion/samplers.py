"""Reverse sampling: one function per solver, all with the same signature.

    sampler(denoise, x_t, schedule, draw_noise, num_steps=..., on_step=...) -> x0 [B, C, T]

``denoise(x_t, t)`` is network + parameterization + guidance. ``x_t`` is where the chain starts: N(0, I) at the first
of ``schedule.times``. ``draw_noise()`` gives fresh noise of x_t's shape. ``on_step(t, x0)`` is told the estimate of
x0 that was made at time t, after each network call. Coefficients are computed before the loop as plain floats: nothing
in the loop waits for the device.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from audio_diffusion.diffusion.process import Denoise, full_times
from audio_diffusion.diffusion.schedules import Schedule

OnStep = Callable[[float, Tensor], None]


def _steps(schedule: Schedule, num_steps: int | None) -> list[tuple[float, float, float]]:
    """(t, ᾱ_t, ᾱ_s) for every step from t down to the next time s; the last ᾱ_s is exactly 1."""
    times = schedule.times(num_steps)
    alpha_bar = schedule.alpha_bar(torch.tensor(times, dtype=torch.float64)).tolist()
    return list(zip(times[:-1], alpha_bar[:-1], alpha_bar[1:], strict=True))


def ddpm(
    denoise: Denoise,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = None,
    variance: Literal["beta", "beta_tilde"] = "beta",
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling (DDPM algorithm 2): the posterior of eq. 7 with fresh noise, none at the last step.

    With fewer steps than T, ᾱ is taken at the visited times, which makes β_t = 1 - ᾱ_t/ᾱ_s
    (Nichol & Dhariwal 2021, eq. 19).

    Args:
        num_steps: None is the schedule's full chain.
        variance: σ_t² = β_t ("beta") or β̃_t = (1 - ᾱ_s)/(1 - ᾱ_t)·β_t ("beta_tilde"), DDPM section 3.2.

    Raises:
        ValueError: if ``variance`` is neither, or the schedule has not so many steps.
    """
    if variance not in ("beta", "beta_tilde"):
        raise ValueError(f'variance: expected "beta" or "beta_tilde", got {variance!r}')
    for t, bar_t, bar_s in _steps(schedule, num_steps):
        x0 = denoise(x_t, full_times(t, x_t)).x0
        beta = 1 - bar_t / bar_s
        ratio = (1 - bar_s) / (1 - bar_t)
        x_t = (bar_s**0.5 * beta / (1 - bar_t)) * x0 + ((1 - beta) ** 0.5 * ratio) * x_t
        if bar_s < 1:
            std = beta**0.5 if variance == "beta" else (beta * ratio) ** 0.5
            x_t = x_t + std * draw_noise()
        if on_step is not None:
            on_step(t, x0)
    return x_t


def ddim(
    denoise: Denoise,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int = 50,
    eta: float = 0.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eqs. 12 and 16); deterministic at eta = 0, DDPM's β̃ chain at 1.

    Raises:
        ValueError: if ``eta`` lies outside [0, 1], or the schedule has not so many steps.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    for t, bar_t, bar_s in _steps(schedule, num_steps):
        x0, noise = denoise(x_t, full_times(t, x_t))
        std = eta * ((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)) ** 0.5
        x_t = bar_s**0.5 * x0 + max(1 - bar_s - std**2, 0.0) ** 0.5 * noise
        if std > 0:
            x_t = x_t + std * draw_noise()
        if on_step is not None:
            on_step(t, x0)
    return x_t
