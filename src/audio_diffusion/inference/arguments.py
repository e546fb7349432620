"""Checks the arguments of a model's methods, and converts seconds, regions and levels to samples."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_audio(audio: Tensor, channels: int, sample_rate: int, seeds: Sequence[int] | None = None) -> None:
    """Raises ValueError for anything but clips ``[B, channels, T]``, or if the numbers of seeds and clips differ."""
    if audio.ndim != 3 or audio.shape[1] != channels or audio.shape[2] == 0 or not audio.is_floating_point():
        raise ValueError(
            f"audio: expected floats [B, {channels}, T] at {sample_rate} Hz (read(FILE) gives "
            f"them), got {audio.dtype} of {list(audio.shape)}"
        )
    if seeds is not None and len(seeds) != len(audio):
        raise ValueError(f"seeds: expected one for each of {len(audio)} clips, got {len(seeds)}")


def samples_of(name: str, seconds: float, sample_rate: int) -> int:
    """Converts the argument ``name``, seconds, to a number of samples.

    Raises:
        ValueError: if ``seconds`` is not finite, or the number is not positive.
    """
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ValueError(f"{name}: expected a finite number of seconds, got {seconds}")
    if not round(seconds * sample_rate) > 0:
        raise ValueError(f"{name}: expected at least one sample, 1/{sample_rate} s, got {seconds}")
    return round(seconds * sample_rate)


def kept_samples(regions: Sequence[Sequence[float]], num_samples: int, sample_rate: int) -> Tensor:
    """Returns a mask, bool ``[num_samples]``, that is False inside the regions, each (start, end) in seconds.

    Raises:
        ValueError: for a region outside the clip.
    """
    total = num_samples / sample_rate
    keep = torch.ones(num_samples, dtype=torch.bool)
    for region in regions:
        if len(region) != 2 or not 0 <= region[0] < region[1] <= total + 0.5 / sample_rate:
            raise ValueError(
                f"regions: expected [start, end] with 0 <= start < end <= {total:g}, the seconds of the clip, got "
                f"{list(region)}"
            )
        start, end = (round(time * sample_rate) for time in region)
        keep[start : max(end, start + 1)] = False
    return keep


def clipped_samples(audio: Tensor, level: float | None, clipped: Tensor | None) -> Tensor:
    """Returns the mask of the clipped samples, bool ``[B, C, T]``.

    Args:
        audio: clips ``[B, C, T]``.
        level: magnitude from which on samples count as clipped; None for each clip's peak, to a 16-bit step.
        clipped: the mask, if it is known; samples equal to 0 are removed from it.

    Raises:
        ValueError: for a level that is not positive, or a mask of another type or shape.
    """
    if level is not None and not level > 0:
        raise ValueError(f"level: expected a positive magnitude, at most the clip's peak, got {level}")
    peak = audio.abs().amax((1, 2), keepdim=True)
    least = (peak - 1.5 / 2**15).clamp(min=1e-9) if level is None else torch.full_like(peak, level)
    if clipped is not None:
        if clipped.shape != audio.shape or clipped.dtype != torch.bool:
            raise ValueError(f"clipped: expected bool {list(audio.shape)}, got {clipped.dtype} {list(clipped.shape)}")
        least = torch.where(clipped, audio.abs().clamp(min=1e-9), torch.inf)
    return audio.abs() >= least
