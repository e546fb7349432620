"""Generates variations of a recording."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Vary(Task):
    """Generates variations of each file (SDEdit).

    Args:
        strength: 0 returns the file itself, 1 an independent sample.
    """

    strength: float = 0.5

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        made = model.vary(clips_of(batch), self.strength, **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]
