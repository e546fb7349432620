"""Nothing is dropped in silence: every clip that could not be used is counted and named."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from audio_diffusion.callbacks.loggers import log_metrics
from audio_diffusion.data.batch import AudioBatch, Skipped


class ReportSkipped(L.Callback):
    """Writes ``skipped.csv`` (shard, key, reason), logs the count, and stops a run that loses too much.

    Args:
        folder: the run's folder.
        max_fraction: of the clips read so far that may be unusable.
        min_clips: clips read before the fraction is judged.

    Raises:
        ValueError: if ``max_fraction`` lies outside [0, 1].
    """

    def __init__(self, folder: str, max_fraction: float = 0.05, min_clips: int = 100):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_fraction: expected 0 to 1, got {max_fraction}")
        self.path, self.max_fraction, self.min_clips = Path(folder) / "skipped.csv", max_fraction, min_clips
        self.num_read = self.num_skipped = 0
        self._named: set[Skipped] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.path.is_file():  # of the run that is resumed
            with open(self.path, newline="") as f:
                self._named.update(Skipped(*row) for row in csv.reader(f) if len(row) == len(Skipped._fields))
        if trainer.is_global_zero:
            self._name(trainer.datamodule.refused())  # type: ignore[attr-defined]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: AudioBatch,
        batch_idx: int,
    ) -> None:
        self._count(trainer, batch)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: AudioBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(trainer, batch)

    def _count(self, trainer: L.Trainer, batch: AudioBatch) -> None:
        self.num_read += len(batch)
        if not batch.skipped:
            return
        self.num_skipped += len(batch.skipped)
        self._name(batch.skipped)
        log_metrics(trainer, {"data/skipped_clips": self.num_skipped})
        if self.num_read >= self.min_clips and self.num_skipped > self.max_fraction * self.num_read:
            raise ValueError(
                f"data: {self.num_skipped} of {self.num_read} clips read could not be used, more than "
                f"callbacks.skipped.max_fraction = {self.max_fraction:g} allows. The latest: {batch.skipped[-1]}. "
                f"All are named in {self.path}; mend or remove them, or raise the limit"
            )

    def _name(self, skipped: Sequence[Skipped]) -> None:
        new = [skip for skip in skipped if skip not in self._named]
        self._named.update(new)
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as f:
            csv.writer(f).writerows(new)
        for skip in new[:3]:
            rank_zero_warn(f"skipped clip {skip.key} of {skip.shard}: {skip.reason} (see {self.path})")
