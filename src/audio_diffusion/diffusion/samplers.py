"""Reverse sampling: one function per solver, all with the same signature.

    sampler(denoise, x_t, schedule, draw_noise, num_steps=..., grid=..., on_step=...) -> x0 [B, C, T]

``denoise(x_t, t)`` is network + parameterization + guidance. ``x_t`` is standard normal noise: it is given the standard
deviation that noised data of unit variance has at the first time. ``draw_noise()`` gives fresh noise of x_t's shape.
``grid`` gives the times at which the network is asked, see ``diffusion.grids``. ``on_step(t, x0)`` is told the estimate
of x0 that was made at time t, after each network call.

Solvers know of the schedule alpha_t, sigma_t and lambda_t = log(alpha_t/sigma_t) alone, so each works on every process.
All coefficients are plain numbers made before the loop: nothing in it waits for the device. x is float32 (or as given)
and updated in place; ``denoise`` must not keep it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from audio_diffusion.diffusion.grids import Grid, balanced, trailing
from audio_diffusion.diffusion.process import Denoise
from audio_diffusion.diffusion.schedules import Schedule

OnStep = Callable[[float, Tensor], None]


class Level(NamedTuple):
    """A time of the grid, and the process there."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """lambda_t = log(alpha_t/sigma_t), half the log-SNR."""
        return math.log(self.alpha / self.sigma)


CLEAN = Level(0.0, 1.0, 0.0)


def _levels(schedule: Schedule, grid: Grid, num_steps: int | None) -> list[Level]:
    """The levels the network is asked at."""
    return [Level(t, max(alpha, 1e-22), sigma) for t in grid(schedule, num_steps) for alpha, sigma in [schedule.at(t)]]


def _start(x_t: Tensor, first: Level) -> Tensor:
    """A copy of x_t with the standard deviation of noised data of unit variance."""
    return x_t * math.hypot(first.alpha, first.sigma)


def _fresh_variance(t: Level, s: Level) -> float:
    """sigma_t² - (alpha_t/alpha_s)²·sigma_s², the noise that the forward process adds from s to t; β_t of DDPM."""
    return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2


def ddpm(
    denoise: Denoise,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = None,
    variance: Literal["beta", "beta_tilde"] = "beta",
    grid: Grid = trailing,
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
    levels = _levels(schedule, grid, num_steps)
    x = _start(x_t, levels[0])
    for t, s in pairwise([*levels, CLEAN]):
        x0 = denoise(x, t.t).x0
        beta = _fresh_variance(t, s)
        x.mul_(t.alpha / s.alpha * (s.sigma / t.sigma) ** 2).add_(x0, alpha=s.alpha * beta / t.sigma**2)
        if s is not CLEAN:
            x.add_(draw_noise(), alpha=beta**0.5 * (1 if variance == "beta" else s.sigma / t.sigma))
        if on_step is not None:
            on_step(t.t, x0)
    return x


def ddim(
    denoise: Denoise,
    x_t: Tensor,
    schedule: Schedule,
    draw_noise: Callable[[], Tensor],
    *,
    num_steps: int | None = 50,
    eta: float = 0.0,
    grid: Grid = trailing,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eqs. 12 and 16); deterministic at eta = 0, DDPM's β̃ chain at 1.

    At eta = 0 it is Euler's method, both on rectified flow's dx/dt = noise - x0 and on EDM's dx/dσ = noise (eq. 14).

    Raises:
        ValueError: if ``eta`` lies outside [0, 1], or the schedule has not so many steps.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    levels = _levels(schedule, grid, num_steps)
    x = _start(x_t, levels[0])
    for t, s in pairwise([*levels, CLEAN]):
        x0 = denoise(x, t.t).x0
        std = eta * s.sigma / t.sigma * _fresh_variance(t, s) ** 0.5
        along = max(s.sigma**2 - std**2, 0.0) ** 0.5 / t.sigma  # of the noise in x, which is (x - alpha_t·x0)/sigma_t
        x.mul_(along).add_(x0, alpha=s.alpha - along * t.alpha)
        if std > 0:
            x.add_(draw_noise(), alpha=std)
        if on_step is not None:
            on_step(t.t, x0)
    return x


def _churned(schedule: Schedule, level: Level, gamma: float) -> Level:
    """The trained level whose sigma/alpha is (1 + gamma) times that of ``level``, or the nearest above."""
    wanted = torch.tensor(-2 * (math.log1p(gamma) - level.lam), dtype=torch.float64)
    t = schedule.time_of_log_snr(wanted).item()
    if schedule.num_steps is not None:
        t = math.ceil(t * schedule.num_steps - 1e-6) / schedule.num_steps
    return Level(t, *schedule.at(t)) if t > level.t else level


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
    levels = _levels(schedule, grid, num_steps)
    gamma = min(churn / len(levels), 2**0.5 - 1)
    x = _start(x_t, levels[0])
    for t, s in pairwise([*levels, CLEAN]):
        if gamma and churn_min <= t.sigma / t.alpha <= churn_max:
            up = _churned(schedule, t, gamma)
            x.mul_(up.alpha / t.alpha).add_(draw_noise(), alpha=churn_noise * _fresh_variance(up, t) ** 0.5)
            t = up
        x0, noise = denoise(x, t.t)
        along = s.sigma / t.sigma
        x.mul_(along).add_(x0, alpha=s.alpha - along * t.alpha)  # Euler's step, which pure noise and the end keep
        if on_step is not None:
            on_step(t.t, x0)
        if s is not CLEAN and t.sigma / t.alpha < 1e6:
            second = denoise(x, s.t)
            x.add_(second.noise - noise, alpha=0.5 * (s.sigma - s.alpha * t.sigma / t.alpha))
            if on_step is not None:
                on_step(s.t, second.x0)
    return x


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
    levels = _levels(schedule, grid, num_steps)
    x = _start(x_t, levels[0])
    known: list[tuple[float, Tensor]] = []  # (λ, x0), newest first
    for t, s in pairwise([*levels, CLEAN]):
        x0 = denoise(x, t.t).x0
        known = [(t.lam, x0), *known[: order - 1]]
        if s is not CLEAN:
            h = s.lam - t.lam
            weights = _extrapolation([(t.lam - lam) / h for lam, _ in known], h * (1 + eta), midpoint=order == 2)
            x.mul_(s.sigma / t.sigma * math.exp(-eta * h))
            for weight, (_, estimate) in zip(weights, known, strict=True):
                x.add_(estimate, alpha=s.alpha * weight)
            if eta > 0:
                x.add_(draw_noise(), alpha=s.sigma * (-math.expm1(-2 * eta * h)) ** 0.5)
        if on_step is not None:
            on_step(t.t, x0)
    return x0


def _extrapolation(ratios: list[float], decay: float, midpoint: bool) -> list[float]:
    """Weights of the estimates made ``ratios`` (0 first, rising) steps ago, ``decay`` = h·(1 + η) of the step."""
    whole = -math.expm1(-decay)
    phi_2 = 1 - whole / decay
    if len(ratios) == 1:
        return [whole]
    if len(ratios) == 2:
        slope = (0.5 * whole if midpoint else phi_2) / ratios[1]
        return [whole + slope, -slope]
    # what the second difference adds to the slope; the paper's code takes half of (1 - 2·phi_2/decay), which is order 2
    bend = (phi_2 * ratios[1] + 1 - 2 * phi_2 / decay) / ratios[2]
    newer, older = (phi_2 + bend) / ratios[1], bend / (ratios[2] - ratios[1])
    return [whole + newer, -newer - older, older]


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
    levels = _levels(schedule, grid, num_steps)
    steps = _unipc_steps(tuple(levels), order)
    x, base = _start(x_t, levels[0]), torch.empty_like(x_t)  # base: what the prediction of x set out from
    known: list[Tensor] = []  # estimates of x0, newest first
    for t, step in zip(levels, steps, strict=True):
        x0 = denoise(x, t.t).x0
        known = [x0, *known[:order]]
        if step.correct:
            x, base = base, x
            for weight, estimate in zip(step.correct, known, strict=True):
                x.add_(estimate, alpha=weight)
        if step.predict:
            x, base = base, x.mul_(step.keep)
            torch.add(base, x0, alpha=step.predict[0], out=x)
            for weight, estimate in zip(step.predict[1:], known[1:], strict=False):
                x.add_(estimate, alpha=weight)
        if on_step is not None:
            on_step(t.t, x0)
    return x0


class _UnipcStep(NamedTuple):
    """How the step that led to a level is corrected, and the next one predicted: weights of x0, newest first."""

    correct: list[float]  # none at the start
    keep: float  # σ_s/σ_t of the next step
    predict: list[float]  # none at the end


@functools.lru_cache(maxsize=8)
def _unipc_steps(levels: tuple[Level, ...], order: int) -> list[_UnipcStep]:
    """The coefficients at every level, kept for the next call on the same grid."""
    return [_unipc_step(levels, i, order) for i in range(len(levels))]


def _unipc_step(levels: Sequence[Level], i: int, order: int) -> _UnipcStep:
    """The coefficients at level i."""

    def weights(at: int, nodes: range) -> list[float]:
        """For the step from one level to the next."""
        t, s = levels[at], levels[at + 1]
        h = s.lam - t.lam
        return [s.alpha * w for w in _exponential_weights([(levels[n].lam - t.lam) / h for n in nodes], h)]

    correct = weights(i - 1, range(i, max(i - 1 - order, -1), -1)) if i else []
    if i + 1 == len(levels):
        return _UnipcStep(correct, 0.0, [])
    return _UnipcStep(correct, levels[i + 1].sigma / levels[i].sigma, weights(i, range(i, max(i - order, -1), -1)))


def _exponential_weights(nodes: list[float], h: float) -> list[float]:
    """Weights of values at the nodes in ∫_0^1 h·e^(-h(1-r))·p(r) dr, p the polynomial through them (UniPC, eq. 5).

    One node is 0, where the step starts. With two the slope gets the paper's simpler half of 1 - e^-h (appendix F).
    """
    whole = -math.expm1(-h)
    if len(nodes) == 1:
        return [whole]
    if len(nodes) == 2:
        slope = 0.5 * whole / sum(nodes)
        return [slope if node else whole - slope for node in nodes]
    moments = [whole]
    for k in range(1, len(nodes)):  # ∫ of r^k: by parts, or where that would cancel by its series
        series = h * math.exp(-h) * sum(h**j / (math.factorial(j) * (k + j + 1)) for j in range(25))
        moments.append(series if h < 1 else 1 - k / h * moments[-1])
    powers = torch.tensor([[node**k for node in nodes] for k in range(len(nodes))], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
