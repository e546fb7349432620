"""Generates waveforms for mel spectrograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from audio_diffusion.cli.inputs import find_files, read_clip, usable
from audio_diffusion.cli.samples import Input, Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.data.audio.reading import PACKED
from audio_diffusion.data.shards.members import read_npy
from audio_diffusion.inference.model import Model
from audio_diffusion.networks.conditions.mel import Mel


@dataclass(frozen=True)
class Vocode(Task):
    """Generates a waveform for each mel spectrogram, with a model that has a mel condition."""

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        made = model.vocode(clips_of(batch), **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]

    def read(self, model: Model, given: str | Sequence[str]) -> list[tuple[Input, ...]]:
        """Reads spectrograms (.npy), and audio files whose spectrograms are computed."""
        mel = model.mel[1]
        return [(_read(model, path, mel),) for path in find_files(given, (*PACKED, "npy"))]


def _read(model: Model, path: Path, mel: Mel) -> Input:
    if path.suffix != ".npy":
        return read_clip(model, path)
    with usable(path):
        return Input(path, None, _read_mel(path, mel))


def _read_mel(path: Path, mel: Mel) -> Tensor:
    """Reads a mel spectrogram from a .npy file, ``[C·n_mels, F]``.

    Raises:
        ValueError: if the file contains anything else.
    """
    frames = torch.from_numpy(read_npy(path.read_bytes()))
    if frames.ndim != 2 or frames.shape[0] != mel.num_rows or not frames.numel():
        raise ValueError(f"expected ln magnitudes [{mel.num_rows}, frames], got {list(frames.shape)}")
    return frames
