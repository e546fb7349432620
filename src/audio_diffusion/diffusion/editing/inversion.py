"""From a clip back to the noise it comes of, and between two clips by way of theirs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from audio_diffusion.diffusion import plans
from audio_diffusion.diffusion.grids import Grid, balanced
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Cond, Denoise, Diffusion, Net
from audio_diffusion.diffusion.samplers import advance, unipc
from audio_diffusion.diffusion.schedules import Schedule


def _no_noise() -> Tensor:
    raise AssertionError("the probability flow draws no noise")


@dataclass(frozen=True)
class _Rising:
    """A grid from its cleanest time to its noisiest."""

    grid: Grid

    def __call__(self, schedule: Schedule, num_steps: int | None) -> list[float]:
        return self.grid(schedule, num_steps)[::-1]


@torch.no_grad()
def invert(
    denoise: Denoise,
    clip: Tensor,
    schedule: Schedule,
    *,
    num_steps: int | None = 100,
    order: int = 2,
    grid: Grid = balanced,
) -> Tensor:
    """The standard normal noise ``[B, C, T]`` of which ``samplers.unipc`` with the same options makes the clip.

    The probability flow backwards (DDIM, Song et al. 2020, arXiv:2010.02502, section 4.3), by UniPC's steps instead of
    Euler's. Order 3 comes back closer where the denoiser is exact, order 2 where it has learnt little: see
    benchmarks/editing. With guidance in ``denoise`` the way back is unstable (Mokady et al. 2022, arXiv:2211.09794).

    Raises:
        ValueError: if the schedule has not so many steps.
    """
    plan = plans.unipc(schedule, _Rising(grid), num_steps, order)
    levels = plans.levels_of(schedule, grid, num_steps)
    x = advance(plan, denoise, clip * levels[-1].alpha, _no_noise)
    return x / plans.start_std(levels)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Along the great circle between each sample's two noises ``[B, C, T]``, at their length; 0 is the first."""
    a, b = first.flatten(1), second.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1)
    angle = torch.arccos(cosine).clamp(min=1e-4)[:, None]
    mixed = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
    return mixed.reshape(first.shape)


class Interpolation(NamedTuple):
    """Clips ``[B, len(weights), C, T]``, and the error of inverting each pair and coming back, dB ``[B, 2]``."""

    clips: Tensor
    error_db: Tensor


def _error_db(estimate: Tensor, clip: Tensor) -> Tensor:
    ratio = (estimate - clip).square().flatten(1).sum(1) / clip.square().flatten(1).sum(1).clamp(min=1e-20)
    return 10 * torch.log10(ratio.clamp(min=1e-20))


@torch.no_grad()
def interpolate(
    net: Net,
    process: Diffusion,
    first: Tensor,
    second: Tensor,
    weights: Sequence[float],
    cond: Cond,
    *,
    num_steps: int | None = 100,
    grid: Grid = balanced,
    guidance: Guidance | None = None,
    progress: Callable[[], None] | None = None,
) -> Interpolation:
    """Clips between two: both inverted, their noises mixed on the sphere (DDIM, section 5.3), and made sound again.

    What the round trip loses of the two clips is added back in proportion, so that the ends *are* the clips, bit by
    bit. It is next to nothing unless ``error_db`` says otherwise.

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization it was trained with.
        first: ``[B, C, T]``, at weight 0.
        second: ``[B, C, T]``, at weight 1.
        weights: inside [0, 1].
        cond: conditions of all, each ``[B, ..]``; for clips of unlike conditions "not given".
        num_steps: network calls for each way; a clip costs as many, and the two ends twice as many.
        grid: when the network is asked.
        guidance: on the way to sound; backwards there is none.
        progress: called after each of the 4 + len(weights) ways.

    Raises:
        ValueError: for clips of unlike shape, or weights outside [0, 1].
    """
    if first.shape != second.shape:
        raise ValueError(f"second: expected the first clip's shape {list(first.shape)}, got {list(second.shape)}")
    if not all(0 <= weight <= 1 for weight in weights):
        raise ValueError(f"weights: expected numbers from 0 (first clip) to 1 (second), got {list(weights)}")
    tell = progress or (lambda: None)
    schedule, plain = process.schedule, process.denoiser(net, cond)
    guided = plain if guidance is None else guidance.denoiser(process, net, cond)

    def back(clip: Tensor) -> Tensor:
        noise = invert(plain, clip, schedule, num_steps=num_steps, grid=grid)
        tell()
        return noise

    def forth(noise: Tensor) -> Tensor:
        clip = unipc(guided, noise, schedule, _no_noise, num_steps=num_steps, order=2, grid=grid)
        tell()
        return clip

    start, end = back(first), back(second)
    first_again, second_again = forth(start), forth(end)

    def between(weight: float) -> Tensor:
        if weight in (0, 1):
            return second if weight else first
        return forth(slerp(start, end, weight)) + torch.lerp(first - first_again, second - second_again, weight)

    errors = [_error_db(first_again, first), _error_db(second_again, second)]
    clips = [between(weight) for weight in weights]
    return Interpolation(torch.stack(clips, dim=1), torch.stack(errors, dim=1))
