"""Regenerates parts of a recording."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Inpaint(Task):
    """Regenerates regions of each file; the rest is kept bit for bit.

    Args:
        regions: (start, end) of each region, seconds.
    """

    regions: list[list[float]]

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        made = model.inpaint(clips_of(batch), [(start, end) for start, end in self.regions], **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]

    def regenerated(self, seconds: float) -> list[tuple[float, float]]:
        return [(start, end) for start, end in self.regions]
