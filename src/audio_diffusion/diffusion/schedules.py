"""Noise schedules: how much of the clean signal and how much noise is in x_t.

All are the forward process of DDPM (Ho et al. 2020, arXiv:2006.11239), x_t = alpha_t x0 + sigma_t noise with
alpha_t² = ᾱ_t (eq. 4) and alpha_t² + sigma_t² = 1. Time t runs from 0 (clean) to 1 (noise); DDPM's integer
index is t·T.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Schedule:
    """A variance-preserving schedule of T steps, given by the noise each step adds.

    Between the T grid points the β of the step is spread evenly, i.e. -log ᾱ is linear in t: the piecewise
    constant form of the VP-SDE (Song et al. 2021, arXiv:2011.13456, eq. 11) that passes through every ᾱ_i.

    Args:
        betas: β_1 .. β_T, each inside (0, 1), float64 ``[T]``.

    Raises:
        ValueError: if there is no step, or a β lies outside (0, 1).
    """

    def __init__(self, betas: Tensor):
        betas = torch.as_tensor(betas, dtype=torch.float64).flatten()
        if len(betas) == 0:
            raise ValueError("betas: expected at least one step, got none")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"betas: expected every β inside (0, 1), got {betas.min():.6g} to {betas.max():.6g}")
        self.num_steps = len(betas)
        #: -log ᾱ at t = 0, 1/T, .. 1
        self._neg_log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), -torch.log1p(-betas).cumsum(0)])
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _interpolate(self, t: Tensor) -> Tensor:
        """-log ᾱ_t, of t's shape and dtype."""
        table = self._tables.get((t.device, t.dtype))
        if table is None:
            table = self._tables[t.device, t.dtype] = self._neg_log_alpha_bar.to(t.device, t.dtype)
        position = t.clamp(0, 1) * self.num_steps
        # within rounding of a grid point i/T is on it
        position = torch.where((position - position.round()).abs() < 1e-4, position.round(), position)
        left = position.floor().clamp(max=self.num_steps - 1).long()
        return torch.lerp(table[left], table[left + 1], position - left)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """ᾱ_t = alpha_t², of t's shape and dtype."""
        return torch.exp(-self._interpolate(t))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, of t's shape and dtype; (1, 0) at t = 0."""
        neg_log = self._interpolate(t)
        return torch.exp(-0.5 * neg_log), torch.sqrt(-torch.expm1(-neg_log))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t² / sigma_t²), of t's shape and dtype; inf at t = 0."""
        neg_log = self._interpolate(t)
        return -neg_log - torch.log(-torch.expm1(-neg_log))

    def times(self, num_steps: int | None) -> list[float]:
        """``num_steps + 1`` times down to 0 for a sampler, spaced evenly on the grid of T steps; None: all.

        The first is the last grid point with alpha_t of at least 0.005: t = 1 on most schedules. Where the signal
        is fainter, x_t is noise all the same, but x0 = (x_t - sigma_t·noise)/alpha_t makes any error of the network
        more than 200 times larger: chains on the cosine schedule that start there diverge. Where that point is not
        noise yet (alpha_t above 0.1, which takes few and coarse steps), the first is t = 1 after all.

        Raises:
            ValueError: if ``num_steps`` is not between 1 and the number of grid points left.
        """
        alpha = torch.exp(-0.5 * self._neg_log_alpha_bar)
        first = int((alpha >= 0.005).sum()) - 1
        if alpha[first] > 0.1:
            first = self.num_steps
        num_steps = first if num_steps is None else num_steps
        if not 1 <= num_steps <= first:
            raise ValueError(f"num_steps: expected 1 to {first} for this schedule of {self.num_steps}, got {num_steps}")
        index = torch.linspace(first, 0, num_steps + 1, dtype=torch.float64).round()
        return [float(i) / self.num_steps for i in index]


def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """β rising linearly from ``beta_start`` to ``beta_end`` over T = ``num_steps`` (DDPM, section 4)."""
    return Schedule(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t + s)/(1 + s)·π/2) (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17).

    Args:
        num_steps: T.
        offset: the paper's s, which keeps β from vanishing near t = 0.
        max_beta: β is clipped to this near t = 1, as in the paper.
    """
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return Schedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


def explicit(alphas: Sequence[float]) -> Schedule:
    """The schedule with the given α_1 .. α_T = 1 - β_t (DDPM's α, one per step, *not* ᾱ)."""
    return Schedule(1 - torch.tensor(list(alphas), dtype=torch.float64))
