"""Generates audio from seeds and conditions, while training and when evaluating."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from audio_diffusion.diffusion.generation import Sampler, generate
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.solvers.solver import OnStep
from audio_diffusion.representations.representation import Representation


def generate_audio(
    net: Net,
    process: Diffusion,
    sampler: Sampler,
    representation: Representation,
    shape: Sequence[int],
    seeds: Sequence[int],
    cond: Cond,
    guidance: Guidance,
    device: torch.device | str,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generates one clip per seed, float32 ``[B, C, T]``; arguments as those of ``diffusion.generation.generate``.

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization that it was trained with.
        sampler: one of ``diffusion.solvers``, with its options bound.
        representation: conversion between audio and x0.
        shape: ``(C, T)`` of a clip.
        seeds: one seed per clip.
        cond: conditions, each ``[B, ..]`` on ``device``.
        guidance: classifier-free guidance; without conditions there is none, which saves network calls.
        device: of the network.
        on_step: called with (t, estimate of x0) after each network call.
    """
    channels, num_samples = shape
    x0 = generate(
        net,
        process,
        sampler,
        representation.shape(channels, num_samples),
        seeds,
        cond,
        guidance=guidance if cond else replace(guidance, scale=1.0),
        device=device,
        on_step=on_step,
    )
    return representation.decode(x0)[..., :num_samples]
