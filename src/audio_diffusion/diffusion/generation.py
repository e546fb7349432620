"""Generates signals from seeds and conditions with a sampler and guidance."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.seeding import SeededNoise
from audio_diffusion.diffusion.solvers.solver import OnStep, Sampler

T = TypeVar("T")


@torch.no_grad()
def generate(
    net: Net,
    process: Diffusion,
    sampler: Sampler,
    shape: Sequence[int],
    seeds: Sequence[int],
    cond: Cond,
    *,
    guidance_scale: float = 1.0,
    guidance: Guidance | None = None,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws one signal per seed by reverse diffusion, float32 ``[B, *shape]``.

    Everything random about sample i comes from ``seeds[i]`` alone. Global random state is neither read nor changed.

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization that it was trained with.
        sampler: one of ``diffusion.solvers``, with its options bound.
        shape: ``(D, L)`` of one signal x0.
        seeds: one seed per signal.
        cond: conditions, each ``[B, ..]`` on ``device``.
        guidance_scale: scale of classifier-free guidance, 1 for none; short for ``guidance=Guidance(scale)``.
        guidance: guidance with all its options; None uses ``guidance_scale``.
        on_step: called with (t, estimate of x0) after each network call.
    """
    noise = SeededNoise(seeds, shape, device)
    denoise = (guidance or Guidance(guidance_scale)).denoiser(process, net, cond)
    return sampler(denoise, noise(), process.schedule, noise, on_step=on_step)


def evenly(steps: Sequence[T], count: int) -> list[T]:
    """Returns at most ``count`` of a chain's steps, evenly spaced, including the first and the last."""
    return [steps[i] for i in torch.linspace(0, len(steps) - 1, min(count, len(steps))).round().long().tolist()]
