"""Editing of clips: sampling that starts from a noised clip, under an optional constraint."""

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
    """Returns the time grid of a sampler: the bound one or its default."""
    return inspect.signature(sampler).parameters["grid"].default


def time_of_noise(schedule: Schedule, ratio: float) -> float:
    """Returns the trained time nearest to the one at which sigma_t/alpha_t is ``ratio``."""
    wanted = torch.tensor(-2 * math.log(ratio), dtype=torch.float64)
    t = max(schedule.time_of_log_snr(wanted).item(), schedule.first_time)
    return t if schedule.num_steps is None else max(round(t * schedule.num_steps), 1) / schedule.num_steps


def time_of_strength(schedule: Schedule, strength: float) -> float:
    """Returns the time at which the amplitude of the noise in x_t, sigma_t/√(alpha_t² + sigma_t²), is ``strength``.

    ``strength`` must be below 1.
    """
    return time_of_noise(schedule, strength / math.sqrt(1 - strength**2))


@dataclass(frozen=True)
class From:
    """Time grid starting at ``start`` with as many points as the full grid, if the schedule has that many.

    A solver's first steps are its least accurate ones and important here, so they are shorter than in the full grid.

    Args:
        start: the first time, unless the grid starts with less noise.
        grid: the grid whose finer version, at most four times as fine, gives the later times.
    """

    start: float
    grid: Grid

    def __call__(self, schedule: Schedule, num_steps: int | None) -> list[float]:
        """Returns ``start`` and the later times of the grid."""
        times = self.grid(schedule, num_steps)
        if times[0] <= self.start:
            return times
        finest = 4 * len(times)
        if schedule.num_steps is not None:
            finest = min(finest, len(self.grid(schedule, None)))  # all steps of the chain
        later_of = functools.cache(lambda count: [t for t in self.grid(schedule, count) if t < self.start])
        enough = lambda count: len(later_of(count)) >= len(times) - 1  # noqa: E731
        count = bisect.bisect_left(
            range(finest), True, lo=len(times), key=enough
        )  # the finest grid, if no coarser one suffices
        while count > len(times) and enough(count - 1):  # rounding may let a coarser grid suffice
            count -= 1
        later = later_of(count)
        return [self.start, *later[self._is_near(schedule, later) :]]

    def _is_near(self, schedule: Schedule, later: list[float]) -> bool:
        """Whether the first step would be less than half the length of the second, in log-SNR."""
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
    """Regenerates ``clip`` with the given ``strength``, subject to ``constraint``; returns ``[B, C, T]``.

    All randomness of sample i comes from ``seeds[i]`` alone. At strength 1 the result depends on the clip only through
    the constraint, and the noise is the same as in ``generation.generate``.

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization it was trained with.
        sampler: one of ``diffusion.solvers``, with its options bound.
        clip: ``[B, C, T]`` on the network's device.
        seeds: one seed per clip.
        cond: conditions, each ``[B, ..]``.
        strength: SDEdit (Meng et al. 2021, arXiv:2108.01073, algorithm 1): the chain starts where
            sigma_t/√(alpha_t² + sigma_t²) is ``strength``, the amplitude of the noise in x_t; 0 returns the clip.
        constraint: known properties of the result, see ``editing.constraints``.
        iterations: backward passes per step for the constraint, see ``consistency.consistent``; 0 for none.
        guidance_scale: scale of classifier-free guidance, 1 for none; short for ``guidance=Guidance(scale)``.
        guidance: all options of guidance.
        on_step: called with (t, x0 estimate) after each estimate.

    Raises:
        ValueError: if the strength is outside [0, 1], or the number of seeds is not that of clips.
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
