"""The one way from seeds to an edited clip: where the chain starts, and what it is held to."""

import bisect
import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.consistency import consistent
from audio_diffusion.diffusion.editing.constraints import Constraint
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.schedule import Grid, Schedule
from audio_diffusion.diffusion.seeding import SeededNoise
from audio_diffusion.diffusion.solvers.solver import OnStep, Sampler


def grid_of(sampler: Sampler) -> Grid:
    """The grid that a sampler goes by, bound or its own."""
    return inspect.signature(sampler).parameters["grid"].default


def time_of_noise(schedule: Schedule, ratio: float) -> float:
    """The trained time of sigma_t/alpha_t = ``ratio``, or the nearest."""
    wanted = torch.tensor(-2 * math.log(ratio), dtype=torch.float64)
    t = max(schedule.time_of_log_snr(wanted).item(), schedule.first_time)
    return t if schedule.num_steps is None else max(round(t * schedule.num_steps), 1) / schedule.num_steps


def time_of_strength(schedule: Schedule, strength: float) -> float:
    """The time at which ``strength``, below 1, is sigma_t/√(alpha_t² + sigma_t²), the amplitude of the noise in x_t."""
    return time_of_noise(schedule, strength / math.sqrt(1 - strength**2))


@dataclass(frozen=True)
class From:
    """A grid from a time on, as many times as of the whole: a solver's first steps are its worst, and here they matter.

    Args:
        start: the first time asked at, unless the grid begins with less noise.
        grid: what follows is the end of a finer one, at most four times as fine.
    """

    start: float
    grid: Grid

    def __call__(self, schedule: Schedule, num_steps: int | None) -> list[float]:
        """``start`` and the later times of the grid."""
        times = self.grid(schedule, num_steps)
        if times[0] <= self.start:
            return times
        finest = 4 * len(times)
        if schedule.num_steps is not None:
            finest = min(finest, len(self.grid(schedule, None)))  # a chain has no more
        later_of = functools.cache(lambda count: [t for t in self.grid(schedule, count) if t < self.start])
        enough = lambda count: len(later_of(count)) >= len(times) - 1  # noqa: E731
        count = bisect.bisect_left(
            range(finest), True, lo=len(times), key=enough
        )  # finest, if none before it is enough
        while count > len(times) and enough(count - 1):  # rounding may make a coarser one enough
            count -= 1
        later = later_of(count)
        return [self.start, *later[self._is_near(schedule, later) :]]

    def _is_near(self, schedule: Schedule, later: list[float]) -> bool:
        """Whether the first step would be less than half of the second, in log-SNR."""
        if len(later) < 2:
            return False
        start, first, second = schedule.log_snr(torch.tensor([self.start, *later[:2]], dtype=torch.float64)).tolist()
        return first - start < 0.5 * (second - first)


@torch.no_grad()
def edit(
    net: Net,
    process: Diffusion,
    sampler: Sampler,
    clip: Tensor,
    seeds: Sequence[int],
    cond: Cond,
    *,
    strength: float = 1.0,
    constraint: Constraint | None = None,
    iterations: int = 2,
    guidance_scale: float = 1.0,
    guidance: Guidance | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """``clip`` made anew as far as ``strength`` says, and held to ``constraint``; ``[B, C, T]``.

    Everything random about sample i comes from ``seeds[i]`` alone. At strength 1 nothing of the clip is seen but what
    the constraint tells, and the noise is that of ``generation.generate``.

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization it was trained with.
        sampler: one of ``diffusion.solvers``, its options bound.
        clip: ``[B, C, T]`` on the network's device.
        seeds: one seed a clip.
        cond: conditions, each ``[B, ..]``.
        strength: SDEdit (Meng et al. 2021, arXiv:2108.01073, algorithm 1): the chain starts where
            sigma_t/√(alpha_t² + sigma_t²) is ``strength``, the amplitude of the noise in x_t; 0 gives the clip itself.
        constraint: what stays, ``editing.constraints``.
        iterations: backward passes a step to follow it, see ``consistency.consistent``; 0 takes none.
        guidance_scale: classifier-free guidance, 1 is none; short for ``guidance=Guidance(scale)``.
        guidance: all that can be said about it.
        on_step: told (t, x0 estimate) after each estimate.

    Raises:
        ValueError: for a strength outside [0, 1], or another number of seeds than clips.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 (the clip itself) to 1 (a fresh sample), got {strength}")
    if len(seeds) != len(clip):
        raise ValueError(f"seeds: expected one for each of {len(clip)} clips, got {len(seeds)}")
    if strength == 0:
        return clip.clone() if constraint is None else constraint.onto(clip)
    schedule, noise = process.schedule, SeededNoise(seeds, clip.shape[1:], clip.device)
    denoise = (guidance or Guidance(guidance_scale)).denoiser(process, net, cond)
    if constraint is not None:
        denoise = consistent(denoise, process, constraint, iterations)
    if strength == 1:
        x0 = sampler(denoise, noise(), schedule, noise, on_step=on_step)
    else:
        start = time_of_strength(schedule, strength)
        alpha, sigma = schedule.at(start)
        x_t = (alpha * clip + sigma * noise()) / math.hypot(alpha, sigma)
        x0 = sampler(denoise, x_t, schedule, noise, grid=From(start, grid_of(sampler)), on_step=on_step)
    return x0 if constraint is None else constraint.onto(x0)
