"""The progress bar of training."""

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar over all batches of the run, which continues on resume with the rate since then.

    On resume Lightning's own bar restarts at 0 of the remaining batches (or of an unknown number), and its rate is an
    average over all batches.

    Args:
        every_s: seconds between updates; 0 updates after each batch.
        refresh_rate: number of batches between updates during validation.
    """

    def __init__(self, every_s: float, refresh_rate: int = 100):
        super().__init__(refresh_rate)
        self.every_s = every_s
        self._shown, self._done = -math.inf, 0

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Returns the metrics shown at the end of the bar, without the run version of Lightning's loggers."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_start()
        bar, done = self.train_progress_bar, trainer.fit_loop.epoch_loop.batch_progress.current.ready
        bar.total, bar.initial, bar.n = trainer.num_training_batches, done, done
        bar.refresh()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Does nothing: the stream is endless, and Lightning's epoch is the whole run."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar, now, self._done = self.train_progress_bar, time.perf_counter(), batch_idx + 1
        if now - self._shown >= self.every_s or batch_idx + 1 == bar.total:
            self._shown, bar.n = now, batch_idx + 1
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the last step, also if training was stopped between two updates."""
        if self._done > self.train_progress_bar.n:
            self.train_progress_bar.n = self._done
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
        super().on_train_end()
