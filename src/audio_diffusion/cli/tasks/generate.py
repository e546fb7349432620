"""Generates new sounds."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Input, Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Generate(Task):
    """Generates new sounds.

    Args:
        seconds: duration; None for that of the training crops.
    """

    seconds: float | None = None

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        return [Result([clip]) for clip in to_cpu(model.generate(seconds=self.seconds, **arguments_of(batch)))]

    def num_samples(self, model: Model, inputs: Sequence[tuple[Input, ...]]) -> int:
        return round((self.seconds or 0) * model.sample_rate) or model.num_samples
