"""Guidance: wraps a denoiser into one that moves its estimates."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.process import Cond, Diffusion, Net, per_sample

_Pair = Callable[[Tensor, Tensor | float], tuple[Prediction, Prediction]]


def drop(cond: Cond, where: Tensor) -> Mapping[str, Tensor]:
    """Replaces the conditions of the samples in ``where`` (bool ``[B]``) by "not given": -1 in integers, NaN in
    floats."""
    return {
        name: value.masked_fill(
            where.reshape(-1, *[1] * (value.ndim - 1)), torch.nan if value.is_floating_point() else -1
        )
        for name, value in cond.items()
    }


@dataclass(frozen=True)
class Guidance:
    """Options of guidance, which moves the network's estimates away from worse ones.

    Args:
        scale: factor of the movement; 1 for no guidance. Classifier-free guidance (Ho & Salimans 2022,
            arXiv:2207.12598, eq. 6, scale = 1 + w) moves away from the estimate without conditions, in one batched call
            of the network.
        interval: times t between which guidance is applied; elsewhere the network is called once, without guidance
            (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        rescale: how far x0 is scaled back to its standard deviation without guidance, from 0 (not at all) to 1 (Lin et
            al. 2023, arXiv:2305.08891, eqs. 15 and 16).
        negative: conditions to move away from, by name, one for each sample or one for all. Conditions that it omits
            are "not given"; without ``negative`` all of them are.
        weak: a worse network of the same process, to move away from instead: autoguidance (Karras et al. 2024,
            arXiv:2406.02507, eq. 3). It takes the same conditions; a model without conditions can use it too.
        clip: bound on the magnitude of x0; None for no bound.
        clip_quantile: below 1, x0 is scaled so that this quantile of its magnitude is at most the bound: dynamic
            thresholding (Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    Raises:
        ValueError: for numbers out of their range, or options that exclude each other.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    negative: Cond | None = None
    weak: Net | None = None
    clip: float | None = None
    clip_quantile: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.interval
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance_scale: expected a finite number, got {self.scale}")
        if self.scale < 0:
            raise ValueError(f"guidance_scale: expected 0 or more, got {self.scale}")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval: expected times 0 <= low <= high <= 1, got {[low, high]}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale: expected 0 to 1, got {self.rescale}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: expected a positive bound of |x0|, got {self.clip}")
        if not 0 < self.clip_quantile <= 1:
            raise ValueError(f"clip_quantile: expected 0 < clip_quantile <= 1, got {self.clip_quantile}")
        if self.negative is not None and self.weak is not None:
            raise ValueError("negative: a weak model to move away from was given as well; expected one of the two")

    def denoiser(self, process: Diffusion, net: Net, cond: Cond) -> Denoiser:
        """Returns the guided denoiser of ``net`` under ``cond``.

        Raises:
            ValueError: if the model has no condition, or ``negative`` has conditions that ``cond`` lacks.
        """
        denoise = process.denoiser(net, cond)
        if self.scale != 1:
            denoise = self._guided(process, denoise, self._pair(process, net, cond))
        return denoise if self.clip is None else self._clipped(process, denoise)

    def _pair(self, process: Diffusion, net: Net, cond: Cond) -> _Pair:
        """Returns a function (x_t, t) -> two predictions: the one to follow, and the one to move away from."""
        if self.weak is not None:
            strong, weak = process.denoiser(net, cond), process.denoiser(self.weak, cond)
            return lambda x_t, t: (strong(x_t, t), weak(x_t, t))
        if not cond:
            raise ValueError(
                f"guidance_scale: got {self.scale}, but guidance needs a condition, and the model has none; use 1"
            )
        negative, first = self.negative or {}, next(iter(cond.values()))
        if not set(negative) <= set(cond):
            raise ValueError(f"negative: expected some of the conditions {sorted(cond)}, got {sorted(negative)}")
        away = {**drop(cond, torch.ones(len(first), dtype=torch.bool, device=first.device))}
        away |= {name: value.expand(len(first), *value.shape[1:]) for name, value in negative.items()}
        both = process.denoiser(net, {name: torch.cat([cond[name], away[name]]) for name in cond})

        def pair(x_t: Tensor, t: Tensor | float) -> tuple[Prediction, Prediction]:
            x0, noise = both(torch.cat([x_t, x_t]), torch.cat([t, t]) if isinstance(t, Tensor) else t)
            n = len(x_t)
            return Prediction(x0[:n], noise[:n]), Prediction(x0[n:], noise[n:])

        return pair

    def _guided(self, process: Diffusion, plain: Denoiser, pair: _Pair) -> Denoiser:
        low, high = self.interval

        def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
            scale: Tensor | float = self.scale
            if isinstance(t, Tensor):
                scale = per_sample(torch.where((t >= low) & (t <= high), self.scale, 1.0), x_t)
            elif not low <= t <= high:
                return plain(x_t, t)
            good, bad = pair(x_t, t)
            # x0 is linear in noise for given x_t and t, so both are moved by the same factor
            moved = Prediction(torch.lerp(bad.x0, good.x0, scale), torch.lerp(bad.noise, good.noise, scale))
            if not self.rescale:
                return moved
            dims = list(range(1, x_t.ndim))
            ratio = good.x0.std(dims, keepdim=True) / moved.x0.std(dims, keepdim=True).clamp(min=1e-12)
            return with_x0(process, moved, moved.x0 * (1 + self.rescale * (ratio - 1)), t)

        return denoise

    def _clipped(self, process: Diffusion, inner: Denoiser) -> Denoiser:
        assert self.clip is not None
        bound = self.clip

        def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
            prediction = inner(x_t, t)
            x0 = prediction.x0
            if self.clip_quantile < 1:
                flat = x0.abs().flatten(1)
                reached = flat.kthvalue(math.ceil(self.clip_quantile * flat.shape[1]), dim=1).values
                limit = per_sample(reached.clamp(min=bound), x0)
                x0 = torch.minimum(torch.maximum(x0, -limit), limit) * (bound / limit)
            return with_x0(process, prediction, x0.clamp(-bound, bound), t)

        return denoise


def with_x0(process: Diffusion, prediction: Prediction, x0: Tensor, t: Tensor | float) -> Prediction:
    """Replaces the prediction's x0, and its noise so that both still give the same x_t."""
    alpha, sigma = process.alpha_sigma(t, x0)
    return Prediction(x0, prediction.noise + (prediction.x0 - x0) * (alpha / sigma))
