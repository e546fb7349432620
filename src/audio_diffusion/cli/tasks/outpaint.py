"""Extends a recording in both directions."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Outpaint(Task):
    """Generates audio before and after each file, which is kept bit for bit.

    Args:
        before: seconds to generate before the file.
        after: seconds to generate after it.
    """

    before: float = 0.0
    after: float = 0.0

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        made = model.outpaint(clips_of(batch), before=self.before, after=self.after, **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]

    def regenerated(self, seconds: float) -> list[tuple[float, float]]:
        parts = [(0.0, self.before), (self.before + seconds, self.before + seconds + self.after)]
        return [(start, end) for start, end in parts if end > start]
