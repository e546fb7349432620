"""Checkpoints: one file that holds all, written so that a kill at any moment leaves the previous one whole."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder, syncs, renames; reads plain data only (``weights_only``)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        with open(temporary, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class SaveCheckpoint(L.Callback):
    """Saves ``checkpoints/step_<step>.ckpt`` every ``every_n_steps`` optimizer steps and at the end.

    Args:
        folder: the run's folder.
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest are kept.

    Raises:
        ValueError: for numbers below 1.
    """

    def __init__(self, folder: str, every_n_steps: int = 1000, keep: int = 2):
        for name, value in {"every_n_steps": every_n_steps, "keep": keep}.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self._saved_at = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step  # nothing new since the checkpoint resumed from

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        path = self.folder / "checkpoints" / f"step_{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("checkpoints/step_????????.ckpt"))[: -self.keep]:
                old.unlink()
