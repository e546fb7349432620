"""Wraps ``denoise``, as guidance does, so that samples satisfy a constraint: inpainting and restoration."""

from collections.abc import Callable

import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.editing.constraints import Constraint
from audio_diffusion.diffusion.guidance import with_x0
from audio_diffusion.diffusion.process import Diffusion

#: with less signal than this in x_t it carries no information, and the gradient is rounding error
_MIN_ALPHA = 1e-3


def consistent(denoise: Denoiser, process: Diffusion, constraint: Constraint, iterations: int = 2) -> Denoiser:
    """Returns ``denoise`` with E[x0 | x_t] replaced by an estimate of E[x0 | x_t, constraint].

    Where x0 given x_t is Gaussian of covariance Σ and P x0 = P y is known, it is x0 + ΣP(PΣP)⁻¹P(y - x0), and Σ is
    sigma_t²/alpha_t·∂x0/∂x_t by Tweedie's formula of second order (Boys et al. 2023, arXiv:2310.06721). The system is
    solved by a few iterations, each one backward pass through the network (moment matching posterior sampling, Rozet et
    al. 2024, arXiv:2405.13712). Finally the estimate is projected onto the constraint (DDNM, Wang et al. 2022,
    arXiv:2212.00490); with 0 iterations this projection is the only step.

    For Gaussian data 2 iterations come within 0.04 standard deviations of the conditional mean in 20 network calls,
    forward and backward, and show no measurable difference from it in 50; projection alone stays 0.31 away, RePaint up
    to 0.24 in 250 (benchmarks/editing).

    Args:
        denoise: denoiser of the process.
        process: schedule and parameterization.
        constraint: the constraint on x0.
        iterations: iterations of the solver; 0 needs no gradients and little memory.

    Raises:
        ValueError: if ``iterations`` is negative.
    """
    if iterations < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations}")

    def wrapped(x_t: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = process.alpha_sigma(t, x_t)
        least = alpha.min().item() if isinstance(alpha, Tensor) else alpha
        if iterations == 0 or least < _MIN_ALPHA:
            plain = denoise(x_t, t)
            return with_x0(process, plain, constraint.onto(plain.x0), t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            x0 = denoise(leaf, t).x0
        estimate, variance = x0.detach(), sigma**2 / alpha

        def covariance(v: Tensor) -> Tensor:
            return variance * torch.autograd.grad(x0, leaf, v, retain_graph=True)[0]

        moved = constraint.onto(estimate + _correction(estimate, constraint, covariance, iterations))
        return Prediction(moved, (x_t - alpha * moved) / sigma)

    return wrapped


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the sum of a·b over each sample, ``[B, 1, 1]``."""
    return (a * b).sum(list(range(1, a.ndim)), keepdim=True)


def _correction(x0: Tensor, constraint: Constraint, covariance: Callable[[Tensor], Tensor], iterations: int) -> Tensor:
    """Returns ΣPv, where v solves PΣP v = P(y - x0) by conjugate residuals (GCR, Eisenstat et al. 1983), per sample.

    The Σ of a network is neither symmetric nor positive, so conjugate gradients may diverge; with GCR the residual
    never grows.
    """
    residual, correction = constraint.onto(x0) - x0, torch.zeros_like(x0)
    known: list[tuple[Tensor, Tensor]] = []  # directions of x0, and their projections, which are orthonormal
    for _ in range(iterations):
        moved = covariance(constraint.adjoint(residual))
        bound = constraint.project(moved, x0)
        for other, unit in known:
            share = _dot(bound, unit)
            moved, bound = moved - share * other, bound - share * unit
        length = _dot(bound, bound).sqrt().clamp(min=1e-20)
        known.append((moved / length, bound / length))
        step = _dot(residual, known[-1][1])
        correction, residual = correction + step * known[-1][0], residual - step * known[-1][1]
    return correction
