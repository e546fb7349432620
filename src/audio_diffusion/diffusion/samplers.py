"""Reverse sampling: one function per solver, all with the same signature.

    sampler(denoise, x_t, schedule, draw_noise, num_steps=..., grid=..., on_step=...) -> x0 [B, C, T]

``denoise(x_t, t)`` is network + parameterization + guidance. ``x_t`` is standard normal noise: it is given the standard
deviation that noised data of unit variance has at the first time. ``draw_noise()`` gives fresh noise of x_t's shape.
``grid`` gives the times at which the network is asked, see ``diffusion.grids``. ``on_step(t, x0)`` is told the estimate
of x0 that was made at time t, after each network call.

Solvers know of the schedule alpha_t, sigma_t and lambda_t = log(alpha_t/sigma_t) alone, so each works on every process.
All but Heun's are one loop, ``follow``, over a plan: plain numbers made before it (``diffusion.plans``), so nothing in
the loop waits for the device. x is float32 (or as given) and updated in place; ``denoise`` must not keep it.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from audio_diffusion.diffusion import plans
from audio_diffusion.diffusion.grids import Grid, balanced
from audio_diffusion.diffusion.process import Denoise
from audio_diffusion.diffusion.schedules import Schedule

OnStep = Callable[[float, Tensor], None]


def follow(
    plan: plans.Plan, denoise: Denoise, x_t: Tensor, draw_noise: Callable[[], Tensor], on_step: OnStep | None = None
) -> Tensor:
    """Samples by a plan: one network call a step, and beyond it one pass over x for each number of the step."""
    x = advance(plan, denoise, x_t * plan.start_std, draw_noise, on_step)
    x0 = denoise(x, plan.last).x0
    if on_step is not None:
        on_step(plan.last, x0)
    return x0


def advance(
    plan: plans.Plan, denoise: Denoise, x: Tensor, draw_noise: Callable[[], Tensor], on_step: OnStep | None = None
) -> Tensor:
    """The steps of a plan alone: from x at its first time, which is changed in place, to x at its last."""
    known: list[tuple[float, Tensor]] = []  # (c, y): c·y are the estimates of x0, newest first
    for t, keep, weights, std in plan.steps:
        prediction = denoise(x, t)
        if on_step is not None:
            on_step(t, prediction.x0)
        if plan.memory:
            known.insert(0, prediction.scaled_x0())
            x.mul_(keep)
            for i, weight in enumerate(weights):
                x.add_(known[i][1], alpha=weight * known[i][0])
            del known[plan.memory :]
        else:
            prediction.step(x, keep, weights[0])
        if std > 0:
            x.add_(draw_noise(), alpha=std)
        del prediction  # the next estimate may have its memory
    return x


def ddpm(
    denoise: Denoise,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = None,
    variance: Literal["beta", "beta_tilde"] = "beta",
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling (DDPM algorithm 2): the posterior of eq. 7 with fresh noise, none at the last step.

    With fewer steps than T, ᾱ is taken at the visited times, which makes β_t = 1 - ᾱ_t/ᾱ_s
    (Nichol & Dhariwal 2021, eq. 19); in any process it is Kingma et al. 2021, arXiv:2107.00630, eqs. 32 and 33.

    Args:
        num_steps: None is the schedule's full chain.
        variance: σ_t² = β_t ("beta") or β̃_t = (1 - ᾱ_s)/(1 - ᾱ_t)·β_t ("beta_tilde"), DDPM section 3.2.

    Raises:
        ValueError: if ``variance`` is neither, or the schedule has not so many steps.
    """
    if variance not in ("beta", "beta_tilde"):
        raise ValueError(f'variance: expected "beta" or "beta_tilde", got {variance!r}')
    return follow(plans.ddpm(schedule, grid, num_steps, variance), denoise, x_t, draw_noise, on_step)


def ddim(
    denoise: Denoise,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = 50,
    eta: float = 0.0,
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eqs. 12 and 16); deterministic at eta = 0, DDPM's β̃ chain at 1.

    At eta = 0 it is Euler's method, both on rectified flow's dx/dt = noise - x0 and on EDM's dx/dσ = noise (eq. 14).

    Raises:
        ValueError: if ``eta`` lies outside [0, 1], or the schedule has not so many steps.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    return follow(plans.ddim(schedule, grid, num_steps, eta), denoise, x_t, draw_noise, on_step)


def heun(
    denoise: Denoise,
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
    """Heun's method with churn (EDM, Karras et al. 2022, arXiv:2206.00364, algorithm 2); 2·num_steps - 1 evaluations.

    Args:
        churn: S_churn; 0 is deterministic, 40 and 80 are the paper's.
        churn_min: noise level sigma/alpha below which none is added (S_min).
        churn_max: and above which (S_max).
        churn_noise: factor of the noise added (S_noise).

    Raises:
        ValueError: if ``churn`` is negative, or the schedule has not so many steps.
    """
    if churn < 0:
        raise ValueError(f"churn: expected 0 or more, got {churn}")
    plan = plans.heun(schedule, grid, num_steps, churn, churn_min, churn_max)
    x = x_t * plan.start_std
    for t, s, raise_by, std, keep, weight, half in plan.steps:
        if std:
            x.mul_(raise_by).add_(draw_noise(), alpha=churn_noise * std)
        first = denoise(x, t)
        if on_step is not None:
            on_step(t, first.x0)
        if s == 0:
            return first.x0
        noise = first.noise
        first.step(x, keep, weight)  # Euler's step, which pure noise keeps
        if half:
            second = denoise(x, s)
            if on_step is not None:
                on_step(s, second.x0)
            x.add_(second.noise, alpha=half).sub_(noise, alpha=half)
    raise AssertionError("the last step ends at t = 0")


def dpmpp(
    denoise: Denoise,
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
    """DPM-Solver++ multistep (Lu et al. 2022, arXiv:2211.01095): 2M and 3M; with eta > 0 SDE-2M and SDE-3M.

    x_s = σ_s/σ_t·e^(-ηh)·x_t + α_s·∫ of x0 extrapolated from the last ``order`` estimates (eqs. 9 and 14, algorithm 2),
    plus noise of variance σ_s²·(1 - e^(-2ηh)); h = λ_s - λ_t. Order 2 takes the midpoint's form, as the paper does.

    Args:
        order: 2 or 3.
        eta: 0 follows the probability flow, 1 the reverse SDE.

    Raises:
        ValueError: if ``order`` is neither, ``eta`` is negative, or the schedule has not so many steps.
    """
    if order not in (2, 3):
        raise ValueError(f"order: expected 2 or 3, got {order}")
    if eta < 0:
        raise ValueError(f"eta: expected 0 or more, got {eta}")
    return follow(plans.dpmpp(schedule, grid, num_steps, order, eta), denoise, x_t, draw_noise, on_step)


def unipc(
    denoise: Denoise,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = 20,
    order: int = 3,
    grid: Grid = balanced,
    on_step: OnStep | None = None,
) -> Tensor:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8, B_2): the predictor's error is taken back for free.

    Each estimate of x0 is first used to correct the step that led to it, then to take the next one: ``order`` + 1
    estimates, with one evaluation a step.

    Args:
        order: of the predictor, 1 to 4; the corrector has one more.

    Raises:
        ValueError: for another order, or if the schedule has not so many steps.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1 to 4, got {order}")
    return follow(plans.unipc(schedule, grid, num_steps, order), denoise, x_t, draw_noise, on_step)
