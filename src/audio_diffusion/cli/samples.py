"""The data of sample.py: requested samples, their input files, and their results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_diffusion.checkpoints.files import record_of
from audio_diffusion.data.audio.reading import AudioInfo, file_name


@dataclass
class Input:
    """An input file to edit."""

    path: Path
    info: AudioInfo | None  # None for a mel spectrogram
    clip: Tensor  # [C, T] at the model's sample rate, or [C·n_mels, F] for a mel spectrogram
    converted: str = ""  # description of the conversion, empty if there was none
    clipped: Tensor | None = None  # bool [C, T], for task=declip: samples at which the file is clipped
    note: str = ""  # a remark about the file for the user

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, computed once for all samples made from it."""
        return record_of(self.path).sha256


@dataclass
class Sample:
    """One requested sample."""

    index: int
    seed: int
    label: str | None = None
    cond: dict[str, Any] = field(default_factory=dict)  # by name, with the content of files
    written_cond: dict[str, Any] = field(default_factory=dict)  # as written, for the record
    files: tuple[Input, ...] = ()  # the inputs

    @property
    def name(self) -> str:
        """The name of its file, from its input, its label, or the first text of its conditions."""
        words = next((value for value in self.cond.values() if isinstance(value, str)), "")
        return file_name("_".join(file.path.stem for file in self.files) or self.label or words)


@dataclass
class Result:
    """The results of one sample: clips ``[C, T]``, the suffix of each clip's name, and figures."""

    clips: list[Tensor]
    suffixes: list[str] = field(default_factory=lambda: [""])
    figures: dict[str, Any] = field(default_factory=dict)


def together(conds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collates the conditions of a batch by name; those read from files become one tensor."""
    columns = {name: [cond[name] for cond in conds] for name in conds[0]}
    return {name: torch.stack(v) if isinstance(v[0], Tensor) else v for name, v in columns.items()}


def to_cpu(audio: Tensor) -> list[Tensor]:
    """Splits ``[B, C, T]`` into B clips ``[C, T]`` on the CPU."""
    return list(torch.unbind(audio.detach().cpu().contiguous()))
