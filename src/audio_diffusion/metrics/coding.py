"""16-bit audio as x0 with a probability: what of it is coded, and how a density of x0 becomes one of the audio."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from audio_diffusion.metrics.likelihood import LEVELS, quantise, uniform
from audio_diffusion.representations.representation import Representation


class Coded(NamedTuple):
    """Clips as x0.

    x0: ``[B, D, L]``.
    own: bool, broadcastable to x0: what is coded; padding is known from the clip's length.
    scale: x0 = scale · k/32768 for an x0 that has a value for each 16-bit sample, whose bin can be coded as it is. None
        for any other x0: it is that of dequantised audio, and has a density.
    nats: float64 ``[B]``, what a density's -log p(x0) differs by from a bound of -log P(audio); 0 where ``scale`` is
        given.
    """

    x0: Tensor
    own: Tensor
    scale: float | None
    nats: Tensor


def code(representation: Representation, audio: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Coded:
    """Clips of 16-bit audio as x0.

    Of a representation with positions of several samples only whole positions are coded: the clip is cut to them. Its
    audio is dequantised, x + u with u uniform in its bin: E[-log p(x + u)] - ln(bin width) is at least -log P(x) (Theis
    et al. 2016, arXiv:1511.01844, eq. 8), and p(x + u) is p(x0) · |det ∂x0/∂audio|.

    Args:
        representation: an exact one.
        audio: ``[B, C, T]``, full scale ±1, taken as 16-bit.
        mask: bool ``[B, 1, T]``, False on padding.
        generators: one a clip, of the dequantisation.

    Raises:
        ValueError: if the representation is not exact.
    """
    if not representation.exact:
        raise ValueError(
            f"representation: the likelihood of audio needs an exact one, which {type(representation).__name__} is not"
        )
    x0 = representation.encode(quantise(audio))
    if representation.elementwise:
        scale = representation.encode(torch.ones(1, 1, 1)).item()
        return Coded(x0, mask, scale, torch.zeros(len(audio), dtype=torch.float64))
    hop, channels = representation.hop, audio.shape[1]
    x0, nats = torch.zeros_like(x0), torch.zeros(len(audio), dtype=torch.float64)
    own = torch.zeros(len(audio), 1, x0.shape[-1], dtype=torch.bool, device=audio.device)
    for i, (num_valid, generator) in enumerate(zip(mask.sum(-1).flatten().tolist(), generators, strict=True)):
        whole = num_valid // hop * hop
        if not whole:
            continue
        place = (uniform([generator], channels, whole) - 0.5).to(audio) / LEVELS
        x0[i, :, : whole // hop] = representation.encode(quantise(audio[i : i + 1, :, :whole]) + place)[0]
        own[i, :, : whole // hop] = True
        nats[i] = channels * whole * math.log(LEVELS) - representation.log_det(channels, whole)
    return Coded(x0, own, None, nats)


def coded_samples(representation: Representation, mask: Tensor) -> Tensor:
    """Which samples are coded, bool of the mask's shape: all that are not padding, in whole positions."""
    whole = mask.sum(-1, keepdim=True) // representation.hop * representation.hop
    return mask & (torch.arange(mask.shape[-1], device=mask.device) < whole)
