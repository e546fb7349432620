"""From seeds and conditions to signals: the start noise, guidance and a sampler put together."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.samplers import OnStep
from audio_diffusion.diffusion.seeding import SeededNoise

Sampler = Callable[..., Tensor]
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
        net: the network, in the mode (eval) it is to be used in.
        process: schedule and parameterization it was trained with.
        sampler: one of ``diffusion.samplers``, its options bound.
        shape: ``(C, T)`` of one signal.
        seeds: one seed a signal.
        cond: conditions, each ``[B, ..]`` on ``device``.
        guidance_scale: classifier-free guidance, 1 is none; short for ``guidance=Guidance(scale)``.
        guidance: all that can be said about it; None goes by ``guidance_scale``.
        on_step: told (t, x0 estimate) after each network evaluation.
    """
    noise = SeededNoise(seeds, shape, device)
    denoise = (guidance or Guidance(guidance_scale)).denoiser(process, net, cond)
    return sampler(denoise, noise(), process.schedule, noise, on_step=on_step)


def evenly(steps: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of a chain's steps, evenly spread, the first and the last among them."""
    return [steps[i] for i in torch.linspace(0, len(steps) - 1, min(count, len(steps))).round().long().tolist()]
