"""Generates the high frequencies that a recording lacks."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class ExtendBandwidth(Task):
    """Regenerates the band above a cutoff; the band below is kept.

    Args:
        cutoff: Hz.
    """

    cutoff: float

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        made = model.extend_bandwidth(clips_of(batch), self.cutoff, **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]
