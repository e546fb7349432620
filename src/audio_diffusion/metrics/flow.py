"""Likelihood of 16-bit audio under the probability-flow ODE of a diffusion model.

In the notation of ``metrics.likelihood``, z = cos·x0 + sin·noise, the ODE of every Gaussian process is

    dz/d log_snr = -½·cos·sin·v(z)          (Song et al. 2021, arXiv:2011.13456, eq. 13)

and log p(z) falls along it by the integral of its divergence (eqs. 39 and 40), estimated by Hutchinson's trace.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_diffusion.diffusion.float64 import in_double
from audio_diffusion.metrics.likelihood import (
    LEVELS,
    Denoise,
    Schedule,
    ends,
    normal,
    per_clip,
    time_at,
    uniform,
)

MAX_STEPS = 2000  # limit on the steps of the solver; it usually needs some dozens

# Dormand & Prince 5(4): where in the step each slope is taken and the weights of those before it; the error's weights
_STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Flow(NamedTuple):
    """-log p of each clip in nats, float64 ``[B]``, and the network evaluations it took, int64 ``[B]``."""

    nats: Tensor
    nfe: Tensor


def integrate(
    slope: Callable[[Tensor, Tensor], Tensor], state: Tensor, start: float, stop: float, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Solves d state/d s = slope(s ``[B]``, state ``[B, N]``) from s = start to stop.

    Uses the pair of orders 5 and 4 of Dormand & Prince (1980) with separate steps for each row, so that rows do not
    depend on each other. The error of a step, relative to each element's magnitude (at least 0.001), is kept below
    ``tolerance``, as the root mean square of all elements but the last, and separately for the last.

    Returns:
        The final state ``[B, N]`` and the number of evaluations ``[B]``.

    Raises:
        ValueError: if it takes more than 2000 steps.
    """
    at = torch.full((len(state),), start, dtype=torch.float64)
    step = torch.full_like(at, (stop - start) / 25)
    evaluations = torch.ones(len(state), dtype=torch.int64)
    first = slope(at, state)
    for _ in range(MAX_STEPS):
        h = torch.where((stop - at).abs() < step.abs(), stop - at, step)
        running = h != 0
        if not running.any():
            return state, evaluations
        hs, new, slopes = h.to(state)[:, None], state, [first]
        for place, weights in _STAGES:
            new = state + hs * sum(weight * k for weight, k in zip(weights, slopes, strict=True))
            slopes.append(slope(at + place * h, new))  # the last slope is the first one of the next step
        error = hs * sum(weight * k for weight, k in zip(_ERROR, slopes, strict=True))
        error = error / torch.maximum(state.abs(), new.abs()).clamp(min=1e-3)
        error = in_double(error)
        size = torch.maximum(error[:, :-1].square().mean(1).sqrt(), error[:, -1].abs()).cpu() / tolerance
        accepted = running & (size <= 1)
        taken = accepted.to(state.device)[:, None]
        state, first = torch.where(taken, new, state), torch.where(taken, slopes[-1], first)
        at = torch.where(accepted, torch.where(h == step, at + h, stop), at)
        step = torch.where(running, step * (0.9 * size.clamp(min=1e-9) ** -0.2).clamp(0.2, 3), step)
        evaluations += 6 * running
    raise ValueError(f"tolerance: expected one that {MAX_STEPS} steps of the solver can keep, got {tolerance}")


def flow_likelihood(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    mask: Tensor,
    scale: float | None,
    generators: Sequence[torch.Generator],
    *,
    t_min: float,
    tolerance: float = 1e-3,
) -> Flow:
    """Bounds -log P of each 16-bit clip by uniform dequantisation, under the ODE from ``t_min`` to t = 1.

    Each sample is moved to a random point of its bin: E[-log p(x + u)] - log(bin width) is at least -log P (Theis et
    al. 2016, arXiv:1511.01844, eq. 8). The density is that of the model at the log-SNR of ``t_min``, where the chain
    stops. The trace is estimated with one Rademacher probe per clip, fixed along the path. Padding follows its exact
    path, sin·noise, and is not counted.

    Args: as for ``variational_bound``; an x0 without a ``scale`` is not dequantised.
        tolerance: error of a step of the solver, relative to the signal, and in nats per dimension.
    """
    own = mask.expand_as(x0)
    dims = own.flatten(1).sum(1)
    most, least = ends(schedule, t_min)
    width = 0.0 if scale is None else scale / LEVELS
    place = uniform(generators, *x0.shape[1:]).to(x0)
    probe = torch.where(normal(generators, x0) < 0, -1.0, 1.0).to(x0) * own
    padding = normal(generators, x0)

    def slope(log_snr: Tensor, state: Tensor) -> Tensor:
        """Returns the derivatives of z, flattened, and of log p per dimension."""
        t = time_at(schedule, log_snr, t_min).to(x0.dtype)
        alpha, sigma = (per_clip(value, x0) for value in schedule.alpha_sigma(t.double()))
        norm = (alpha.square() + sigma.square()).sqrt()
        z = torch.where(own, state[:, :-1].reshape(x0.shape), sigma / norm * padding)
        with torch.enable_grad():
            z.requires_grad_()
            found_x0, found_noise = denoise(z * norm, t.to(x0.device))
            v = (alpha * found_noise - sigma * found_x0) / norm
            (product,) = torch.autograd.grad((v * probe).sum(), z)
        trace = (product * probe).flatten(1).sum(1) / dims.clamp(min=1)
        rates = torch.cat([(v.detach() * own).flatten(1), trace[:, None]], dim=1)
        return -0.5 * (torch.sigmoid(log_snr) * torch.sigmoid(-log_snr)).sqrt().to(x0)[:, None] * rates

    z = torch.sigmoid(torch.tensor(most)).sqrt().item() * (x0 + width * (place - 0.5)) * own
    state, evaluations = integrate(slope, F.pad(z.flatten(1), (0, 1)), most, least, tolerance)
    z, change = in_double(state[:, :-1]), in_double(state[:, -1])
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)) * own.flatten(1).to(z.device)
    per_dim = change + 0.5 * F.logsigmoid(torch.tensor(most)).item()
    per_dim = per_dim if scale is None else per_dim + math.log(width)
    return Flow(-(log_prior.sum(1) + dims.to(z.device) * per_dim).cpu(), evaluations)
