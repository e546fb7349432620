"""Guidance: a ``denoise`` wrapped into another ``denoise``."""

from collections.abc import Mapping

import torch
from torch import Tensor

from audio_diffusion.diffusion.parameterization import Prediction
from audio_diffusion.diffusion.process import Cond, Denoise, Diffusion, Net


def drop(cond: Cond, where: Tensor) -> Mapping[str, Tensor]:
    """The conditions with those of the samples in ``where`` (bool ``[B]``) replaced by "not given": -1 in integers, NaN
    in floats."""
    return {
        name: value.masked_fill(
            where.reshape(-1, *[1] * (value.ndim - 1)), torch.nan if value.is_floating_point() else -1
        )
        for name, value in cond.items()
    }


def classifier_free(process: Diffusion, net: Net, cond: Cond, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w).

    noise = noise_uncond + scale·(noise_cond - noise_uncond): scale 1 is the plain conditional model and costs one
    network evaluation, any other two, made in one batched call.

    Raises:
        ValueError: if ``scale`` is negative, or differs from 1 where there is no condition.
    """
    if scale < 0:
        raise ValueError(f"guidance_scale: expected 0 or more, got {scale}")
    if scale == 1 or not cond:
        if scale != 1:
            raise ValueError(f"guidance_scale: got {scale}, but the model has no condition to be guided by; use 1")
        return process.denoiser(net, cond)
    first = next(iter(cond.values()))
    nothing = drop(cond, torch.ones(len(first), dtype=torch.bool, device=first.device))
    both = process.denoiser(net, {name: torch.cat([cond[name], nothing[name]]) for name in cond})

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        x0, noise = both(torch.cat([x_t, x_t]), torch.cat([t, t]))
        (x0_cond, x0_uncond), (noise_cond, noise_uncond) = x0.chunk(2), noise.chunk(2)
        # x0 is linear in noise for given x_t and t, so both are moved alike
        return Prediction(torch.lerp(x0_uncond, x0_cond, scale), torch.lerp(noise_uncond, noise_cond, scale))

    return denoise
