"""Interpolates between recordings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from audio_diffusion.cli.samples import Input, Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import ConfigError

FAILED_DB = -10.0  # error of an inversion above which it is audible relative to the clip


@dataclass(frozen=True)
class Interpolate(Task):
    """Interpolates from each file to the next, through the noise that each is inverted to; the ends are the files.

    Args:
        at: positions between 0, the first file of a pair, and 1, the second.
        strength: how far both files are inverted towards noise; 1 is all the way.
        num_steps: number of DDIM steps from noise to a clip.
    """

    at: list[float]
    strength: float = 0.9
    num_steps: int = 50

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        first, second = (torch.stack([sample.files[i].clip for sample in batch]) for i in (0, 1))
        given = {name: value for name, value in arguments_of(batch).items() if name != "seeds"}
        made = model.interpolate(first, second, self.at, strength=self.strength, num_steps=self.num_steps, **given)
        names = [f"_{place:.3f}" for place in self.at]
        return [
            Result(to_cpu(clips), names, {"round_trip_error_db": [round(db, 1) for db in error.tolist()]})
            for clips, error in zip(made.clips, made.error_db, strict=True)
        ]

    def read(self, model: Model, given: str | Sequence[str]) -> list[tuple[Input, ...]]:
        """Pairs each file with the next; the shorter of a pair is padded."""
        files = [file for (file,) in super().read(model, given)]
        if len(files) < 2:
            raise ConfigError(f"input: expected two files or more to interpolate between, got {len(files)}")
        return [_of_one_length(first, second, model.sample_rate) for first, second in pairwise(files)]

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        worst = max(max(row["round_trip_error_db"]) for row in rows)
        lines = [f"error of the inversion to noise and back: at most {worst:.1f} dB relative to the clip"]
        if worst > FAILED_DB:
            lines.append(
                "the network cannot reproduce these sounds from their noise, so the interpolations are unreliable"
            )
        return lines


def _of_one_length(first: Input, second: Input, sample_rate: int) -> tuple[Input, Input]:
    """Pads the shorter of two files to interpolate between with silence to the length of the longer one."""
    length = max(first.clip.shape[1], second.clip.shape[1])
    padded = []
    for file, other in ((first, second), (second, first)):
        missing = length - file.clip.shape[1]
        if missing:
            note = f"{missing / sample_rate:.3g} s of silence added at its end, to match the length of {other.path}"
            file = replace(file, clip=F.pad(file.clip, (0, missing)), note=note)
        padded.append(file)
    return padded[0], padded[1]
