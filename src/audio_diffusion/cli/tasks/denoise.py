"""Removes white noise from a recording."""

from collections.abc import Sequence
from dataclasses import dataclass

from audio_diffusion.cli.samples import Result, Sample, to_cpu
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.inference.model import Model


@dataclass(frozen=True)
class Denoise(Task):
    """Removes white noise.

    Args:
        snr_db: signal-to-noise ratio; None to estimate it from the quietest parts.
        mean: True for the posterior mean, which has the best SNR but is muffled.
    """

    snr_db: float | None = None
    mean: bool = False

    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        made = model.denoise(clips_of(batch), snr_db=self.snr_db, mean=self.mean, **arguments_of(batch))
        return [Result([clip]) for clip in to_cpu(made)]
