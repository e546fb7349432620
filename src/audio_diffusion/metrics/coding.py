"""Conversion of 16-bit audio to x0 for likelihoods: which samples count, and how densities of x0 and audio relate."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from audio_diffusion.metrics.likelihood import LEVELS, quantise, uniform
from audio_diffusion.representations.representation import Representation


class Coded(NamedTuple):
    """Clips as x0, with the data needed to compute likelihoods.

    x0: ``[B, D, L]``.
    own: bool, broadcastable to x0: True where x0 is coded; padding is known from the clip's length.
    scale: x0 = scale · k/32768 if each value of x0 is one 16-bit sample, whose bin has a probability. None for any
        other x0, which is encoded from dequantised audio and has a density.
    nats: float64 ``[B]``, to be added to -log p(x0) to get a bound on -log P(audio); 0 if ``scale`` is given.
    """

    x0: Tensor
    own: Tensor
    scale: float | None
    nats: Tensor


def code(representation: Representation, audio: Tensor, mask: Tensor, generators: Sequence[torch.Generator]) -> Coded:
    """Encodes clips of 16-bit audio as x0.

    If a position of the representation covers several samples, the clip is cut to whole positions and dequantised,
    x + u with u uniform in the sample's bin: E[-log p(x + u)] - ln(bin width) is at least -log P(x) (Theis et al. 2016,
    arXiv:1511.01844, eq. 8), and p(x + u) is p(x0) · |det ∂x0/∂audio|.

    Args:
        representation: an exact representation.
        audio: ``[B, C, T]``, full scale ±1, rounded to 16 bits.
        mask: bool ``[B, 1, T]``, False on padding.
        generators: one per clip, for the dequantisation.

    Raises:
        ValueError: if the representation is not exact.
    """
    if not representation.exact:
        raise ValueError(
            f"representation: the likelihood of audio needs an exact one, which {type(representation).__name__} is not"
        )
    if representation.elementwise:
        scale = representation.encode(torch.ones(1, 1, 1)).item()
        return Coded(representation.encode(quantise(audio)), mask, scale, torch.zeros(len(audio), dtype=torch.float64))
    hop, channels = representation.hop, audio.shape[1]
    x0 = audio.new_zeros(len(audio), *representation.shape(channels, audio.shape[-1]))
    nats = torch.zeros(len(audio), dtype=torch.float64)
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
    """Returns which samples are coded, bool of the mask's shape: those of whole positions without padding."""
    whole = mask.sum(-1, keepdim=True) // representation.hop * representation.hop
    return mask & (torch.arange(mask.shape[-1], device=mask.device) < whole)
