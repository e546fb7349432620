"""Shows how a sound emerges from noise."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Input, Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Process(Task):
    """Returns the estimate of the clean audio at several steps of the reverse process.

    Args:
        seconds: duration; None for that of the training crops.
        num_points: number of steps shown.
    """

    seconds: float | None = None
    num_points: int = 6

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        points = model.reverse_process(seconds=self.seconds, num_points=self.num_points, **arguments_of(batch))
        names = [f"_{i:02d}_t{t:.3f}" for i, (t, _) in enumerate(points)]
        return [Result(list(clips), names) for clips in zip(*(to_cpu(audio) for _, audio in points), strict=True)]

    def num_samples(self, model: Model, inputs: Sequence[tuple[Input, ...]]) -> int:
        return round((self.seconds or 0) * model.sample_rate) or model.num_samples
