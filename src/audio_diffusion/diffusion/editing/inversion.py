"""Inversion of clips to the noise that generates them, and interpolation between two clips in noise space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.editing.vary import From, time_of_strength
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.schedule import Grid, NoiseLevel, Schedule
from audio_diffusion.diffusion.solvers.ddim import coefficients, ddim

_LOUDEST = 1e4  # assumed variance of the loudest part of a signal whose mean variance is about one
_MOST, _SAME = 20, 1e-6  # maximum number of calls per step; relative change of x_t at which the iteration has converged
_DEPTH = 3  # number of iterates in Anderson's acceleration


def _no_noise() -> Tensor:
    raise AssertionError("the probability flow draws no noise")


@torch.no_grad()
def invert(
    denoise: Denoiser, clip: Tensor, schedule: Schedule, *, num_steps: int | None = 50, grid: Grid = balanced
) -> Tensor:
    """Returns the standard normal noise ``[B, C, T]`` from which ``solvers.ddim`` on the same grid generates the clip.

    Each of DDIM's steps (Song et al. 2020, arXiv:2010.02502, eq. 12) is inverted by solving it for x_t. Evaluating the
    network at x_s instead of x_t, as in the paper's section 4.3, is an explicit Euler step in the other direction: its
    error grows on the way back, and with trained networks the round trip fails, above all with guidance (Mokady et al.
    2022, arXiv:2211.09794). The equation is solved as a fixed point with Anderson acceleration (Pan et al. 2023,
    arXiv:2309.04907), in about 5 network calls per step, more in difficult cases. See benchmarks/editing.

    Raises:
        ValueError: if the schedule has fewer than ``num_steps`` steps.
    """
    levels = schedule.levels(grid, num_steps)
    x = clip * levels[-1].alpha
    noise = denoise(x, levels[-1].time).noise
    for s, t in pairwise(reversed(levels)):
        x, noise = _undone(denoise, x, noise, s, t)
    return x / levels[0].std


def _undone(denoise: Denoiser, x_s: Tensor, noise: Tensor, s: NoiseLevel, t: NoiseLevel) -> tuple[Tensor, Tensor]:
    """Returns the x_t that DDIM's step maps to ``x_s``, and the network's noise at x_t; ``noise`` is that at ``x_s``.

    Solves keep·x + weight·x0(x) = x_s separately for each sample. Corrections are divided by the slope for the loudest
    part of a signal, where networks are steep; it is alpha_s/alpha_t unless x_t contains no signal.
    """
    keep, weight, _ = coefficients(t, s)
    slope = keep + weight * t.alpha * _LOUDEST / (t.alpha**2 * _LOUDEST + t.sigma**2)
    ratio = t.alpha / s.alpha
    x = ratio * x_s + (t.sigma - ratio * s.sigma) * noise
    found = torch.zeros(len(x), 1, 1, dtype=torch.bool, device=x.device)
    before: list[tuple[Tensor, Tensor]] = []  # corrections and the resulting iterates, newest first
    for _ in range(_MOST):
        estimate = denoise(x, t.time)
        noise = estimate.noise
        correction = (x_s - keep * x - weight * estimate.x0) / slope
        better = x + correction
        found = found | (_norm(correction) <= _SAME * _norm(better))
        if found.all():
            break
        x = torch.where(found, x, _accelerated(correction, better, before))
        before = [(correction, better), *before[: _DEPTH - 1]]
    return x, noise


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None]


def _accelerated(correction: Tensor, better: Tensor, before: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Anderson acceleration: combines the last iterates so that their corrections cancel best in least squares."""
    if not before:
        return better
    change = torch.stack([(correction - old).flatten(1) for old, _ in before], dim=2)
    moved = torch.stack([(better - old).flatten(1) for _, old in before], dim=2)
    gram = change.mT @ change
    least = gram.diagonal(dim1=1, dim2=2).sum(1).mul(1e-6).clamp(min=1e-20)  # solvable, also for those found
    gram = gram + least[:, None, None] * torch.eye(len(before), device=gram.device)
    mixture = torch.linalg.solve(gram, change.mT @ correction.flatten(1)[:, :, None])
    return better - (moved @ mixture).reshape(better.shape)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Interpolates spherically between each sample's two noises ``[B, C, T]``; weight 0 returns the first."""
    a, b = first.flatten(1), second.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1)
    angle = torch.arccos(cosine).clamp(min=1e-4)[:, None]
    mixed = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
    return mixed.reshape(first.shape)


class Interpolation(NamedTuple):
    """Clips ``[B, len(weights), C, T]``, and the round-trip error of inverting each pair, dB ``[B, 2]``."""

    clips: Tensor
    error_db: Tensor


def error_db(estimate: Tensor, clip: Tensor) -> Tensor:
    """Returns the error of estimates ``[B, C, T]`` relative to the clips' power, in dB ``[B]``."""
    ratio = (estimate - clip).square().flatten(1).sum(1) / clip.square().flatten(1).sum(1).clamp(min=1e-20)
    return 10 * torch.log10(ratio.clamp(min=1e-20))


def _check(first: Tensor, second: Tensor, weights: Sequence[float], strength: float) -> None:
    """Raises ValueError for invalid arguments of ``interpolate``."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength: expected more than 0, up to 1 (all the way to noise), got {strength:g}")
    if first.shape != second.shape:
        raise ValueError(f"second: expected the first clip's shape {list(first.shape)}, got {list(second.shape)}")
    if not all(0 <= weight <= 1 for weight in weights):
        raise ValueError(f"weights: expected numbers from 0 (first clip) to 1 (second), got {list(weights)}")


@dataclass(frozen=True)
class _Path:
    """DDIM between clips and the noises that lead to them, in both directions."""

    denoise: Denoiser
    schedule: Schedule
    num_steps: int | None
    grid: Grid
    progress: Callable[[], None]

    def back(self, clip: Tensor) -> Tensor:
        """Returns the noise that leads to a clip."""
        noise = invert(self.denoise, clip, self.schedule, num_steps=self.num_steps, grid=self.grid)
        self.progress()
        return noise

    def forth(self, noise: Tensor) -> Tensor:
        """Returns the clip that noise leads to."""
        clip = ddim(self.denoise, noise, self.schedule, _no_noise, num_steps=self.num_steps, grid=self.grid)
        self.progress()
        return clip


@torch.no_grad()
def interpolate(
    net: Net,
    process: Diffusion,
    first: Tensor,
    second: Tensor,
    weights: Sequence[float],
    cond: Cond,
    *,
    strength: float = 0.9,
    num_steps: int | None = 50,
    grid: Grid = balanced,
    guidance: Guidance | None = None,
    progress: Callable[[], None] | None = None,
) -> Interpolation:
    """Interpolates between two clips: inverts both, mixes their noises spherically (DDIM, section 5.3) and samples.

    The residual of the round trip of each clip is added back in proportion, so that the ends *are* the clips, bit by
    bit. It is negligible unless ``error_db`` is large: both directions use the same network and guidance.

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization it was trained with.
        first: ``[B, C, T]``, at weight 0.
        second: ``[B, C, T]``, at weight 1.
        weights: interpolation weights inside [0, 1].
        cond: conditions of all clips, each ``[B, ..]``; "not given" if the two clips' conditions differ.
        strength: the clips are inverted up to the time at which sigma_t/√(alpha_t² + sigma_t²) is ``strength``; 1 is
            pure noise. An imperfect network inverts a clip to noise unlike that seen in training, the more so the
            further back: drums came out 24 dB too loud at 1, 3 dB at 0.9 (benchmarks/editing/NETWORK.md).
        num_steps: number of DDIM steps. A clip costs that many network calls, each of the two ends about six times as
            many.
        grid: time grid of DDIM.
        guidance: guidance in both directions.
        progress: called after each of the 4 + len(weights) passes.

    Raises:
        ValueError: if the clips differ in shape, a weight is outside [0, 1], or the strength is outside (0, 1].
    """
    _check(first, second, weights, strength)
    if strength < 1:
        grid = From(time_of_strength(process.schedule, strength), grid)
    denoise = (guidance or Guidance()).denoiser(process, net, cond)
    path = _Path(denoise, process.schedule, num_steps, grid, progress or (lambda: None))
    start, end = path.back(first), path.back(second)
    first_again, second_again = path.forth(start), path.forth(end)

    def between(weight: float) -> Tensor:
        if weight in (0, 1):
            return second if weight else first
        return path.forth(slerp(start, end, weight)) + torch.lerp(first - first_again, second - second_again, weight)

    errors = [error_db(first_again, first), error_db(second_again, second)]
    clips = [between(weight) for weight in weights]
    return Interpolation(torch.stack(clips, dim=1), torch.stack(errors, dim=1))
