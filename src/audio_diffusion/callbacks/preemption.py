"""Being stopped by a cluster: save at the next step, leave, and say that the job should be queued again."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

STOP_FILE = "AUDIO_DIFFUSION_STOP_FILE"


class StopOnFile(L.Callback):
    """Ends training cleanly once a file exists: slurm/train.sh makes it when Slurm warns of the end.

    Rank 0 looks for the file, at ends of optimizer steps, and all ranks follow it. No signal handler is involved, so
    DataLoader workers and collectives are never interrupted. What is left to save is saved as at any end of training;
    then ``<file>.done`` asks the batch script to queue the job again.

    Args:
        file: None: the environment variable AUDIO_DIFFUSION_STOP_FILE; nothing is done where that is not set.
        every_n_steps: optimizer steps between looks.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, file: str | None = None, every_n_steps: int = 5):
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps: expected at least 1, got {every_n_steps}")
        name = file or os.environ.get(STOP_FILE)
        self.file, self.every_n_steps = Path(name) if name else None, every_n_steps
        self._stopped = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.file is None or trainer.global_step % self.every_n_steps:
            return
        if trainer.strategy.broadcast(trainer.is_global_zero and self.file.exists()):
            rank_zero_info(f"{self.file} is there: stopping at step {trainer.global_step}")
            trainer.should_stop = self._stopped = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stopped and self.file is not None and trainer.is_global_zero:
            Path(f"{self.file}.done").touch()
