"""Regenerates the clipped peaks of a recording."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from audio_diffusion.cli.inputs import find_files, read_clip, usable
from audio_diffusion.cli.samples import Input, Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.data.audio.reading import PACKED, AudioInfo
from audio_diffusion.data.audio.recording import read_file
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Declip(Task):
    """Regenerates clipped samples, at the clip level or beyond it; all others are kept bit for bit.

    Args:
        level: magnitude at and above which samples of the file count as clipped; None for each file's peak.
    """

    level: float | None = None
    exceeds_full_scale: ClassVar[bool] = True

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        mask = torch.stack([sample.files[0].clipped for sample in batch])  # type: ignore[misc]
        made = model.declip(clips_of(batch), clipped=mask, **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]

    def read(self, model: Model, given: str | Sequence[str]) -> list[tuple[Input, ...]]:
        """Reads the files and finds their clipped samples, at ``level`` or at the peak of each file."""
        return [(self._with_mask(model, read_clip(model, path)),) for path in find_files(given, PACKED)]

    def _with_mask(self, model: Model, file: Input) -> Input:
        assert file.info is not None
        with usable(file.path):
            mask, note = find_clipped(file.path, file.info, file.clip, model.sample_rate, self.level)
        return replace(file, clipped=mask, note=note)


def find_clipped(
    path: Path, info: AudioInfo, clip: Tensor, sample_rate: int, level: float | None
) -> tuple[Tensor, str]:
    """Finds the clipped samples of a file: a bool mask of the clip's shape ``[C, T]``, and a note about them.

    The search uses the file at its own sample rate: after resampling, clipped samples are no longer at one level.
    Without ``level`` the clip level is the file's peak, to a 16-bit step, and at least two consecutive samples must be
    at it.

    Raises:
        ValueError: if no sample is at the level, or, without ``level``, no two consecutive ones are.
    """
    own = read_file(path, info.sample_rate, info.channels).abs()
    least = max(own.max().item() - 1.5 / 2**15, 1e-9) if level is None else level
    at = own >= least
    if level is None and not (at[:, 1:] & at[:, :-1]).any():
        raise ValueError(
            f"it is not clipped: {int(at.sum())} of {at.numel()} samples are at its peak of {own.max().item():.4f}, "
            "none beside another; level=MAGNITUDE chooses a lower one"
        )
    if not at.any():
        raise ValueError(f"none of its samples is at level={level:g} or above; its peak is {own.max().item():.4f}")
    share = at.float().mean().item()
    note = f"{int(at.sum())} of {at.numel()} samples ({100 * share:.2g} %) are at the clip level {least:.4f} or above"
    if len(at) != len(clip):
        at = at.any(0, keepdim=True).expand(len(clip), -1)
    return _at_rate(at, clip.shape[1], info.sample_rate, sample_rate), note


def _at_rate(mask: Tensor, length: int, from_rate: int, to_rate: int) -> Tensor:
    """Converts a mask ``[C, T]`` to another sample rate: True at each sample next to one where the mask is True."""
    if from_rate == to_rate:
        return mask[:, :length]
    place, last = torch.arange(length, dtype=torch.float64) * from_rate / to_rate, mask.shape[1] - 1
    out = mask[:, place.floor().long().clamp(max=last)] | mask[:, place.ceil().long().clamp(max=last)]
    channel, position = mask.nonzero(as_tuple=True)
    exact = position.double() * to_rate / from_rate
    for near in (exact.floor(), exact.ceil()):
        out[channel, near.long().clamp(max=length - 1)] = True
    return out
