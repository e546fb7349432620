"""Continues a recording."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Continue(Task):
    """Generates what follows each file, which is kept bit for bit.

    Args:
        seconds: duration to generate.
    """

    seconds: float

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        made = model.continue_(clips_of(batch), self.seconds, **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]

    def regenerated(self, seconds: float) -> list[tuple[float, float]]:
        return [(seconds, seconds + self.seconds)]
