"""Saves checkpoints during training, in the background; ``checkpoints`` has the file formats."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from audio_diffusion.callbacks.loggers import latest_metrics, log_metrics
from audio_diffusion.checkpoints.files import is_full, room
from audio_diffusion.checkpoints.folder import Keep, path_of
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.inference.targets import nearest
from audio_diffusion.training.checkpoint_io import AtomicCheckpointIO

BEST = "best"  # folder of the best checkpoint; the newest ones have another folder


class SaveError(RuntimeError):
    """The last checkpoint of a run could not be written."""


class SaveCheckpoint(L.Callback):
    """Saves ``checkpoints/step_<step>.ckpt`` every ``every_n_steps`` optimizer steps and at the end.

    A failed write causes a warning and another attempt soon after; at the end of training it is an error. Logs the time
    for which training paused, ``checkpoint/pause_ms``; the time of writing in the background, ``checkpoint/write_s``;
    and the number of failed writes, ``checkpoint/failed``.

    Args:
        folder: the run's folder.
        every_n_steps: optimizer steps between checkpoints.
        keep: number of the newest checkpoints to keep.
        keep_every_n_steps: checkpoints at multiples of this step are kept too; None for only the newest ones.
        monitor: name of a logged metric, such as "val/loss_ema". After each validation that improves it, a checkpoint
            is also saved in the folder ``best``, which contains only the best one; None for no such folder.
        mode: "min" if less is better, or "max".

    Raises:
        ValueError: for numbers below 1, or another mode.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int = 1000,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
        monitor: str | None = None,
        mode: str = "min",
    ):
        check_at_least_one(every_n_steps=every_n_steps, keep=keep, keep_every_n_steps=keep_every_n_steps)
        if mode not in ("min", "max"):
            raise ValueError(f'mode: expected "min" or "max", got {mode!r}')
        self.folder, self.best_folder, self.every_n_steps = (
            Path(folder, "checkpoints"),
            Path(folder, BEST),
            every_n_steps,
        )
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None  # value of the metric at the checkpoint in the folder best
        self._warned = False
        self.keep = Keep(keep, keep_every_n_steps)
        self._retry_every_n_steps = max(1, every_n_steps // 10)
        self._failures, self._retry = 0, False
        self._why = ""  # the last save failed, on rank 0
        self._said_slow = False
        self._saved_at = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        io = self._io(trainer)
        io.world_size, io.keep, io.keep_in = trainer.world_size, self.keep, {BEST: Keep(1)}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.best is None else {"best": self.best, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("monitor") == self.monitor:  # the values of another metric cannot be compared
            self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.strategy.broadcast(trainer.global_step)
        assert step == trainer.global_step, f"rank 0 starts at step {step}, this rank at {trainer.global_step}"
        self._saved_at = step  # nothing new since the checkpoint resumed from

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._report(trainer)
        step = trainer.global_step
        if step == self._saved_at:
            return
        if step % self.every_n_steps == 0 or (step % self._retry_every_n_steps == 0 and self._agree_to_retry(trainer)):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the best checkpoint so far; rank 0 decides, because only it has all metrics."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        value = trainer.strategy.broadcast(self._monitored(trainer))
        if value is None or not math.isfinite(value):
            return
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            self._finish(trainer)
            trainer.save_checkpoint(path_of(self.best_folder, trainer.global_step), weights_only=False)
            self._finish(trainer)

    def _monitored(self, trainer: L.Trainer) -> float | None:
        """Returns the metric if it was logged at this step; warns once if it never was."""
        logged = latest_metrics(trainer)
        step, value = logged.get(self.monitor or "", (-1, 0.0))
        if step == -1 and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"callbacks.checkpoint.monitor: no metric {self.monitor!r} has been logged, so no best checkpoint "
                f"is kept.{nearest(self.monitor or '', list(logged))}"
            )
        return value if step == trainer.global_step else None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last checkpoint and waits for it; if it fails, makes one more attempt."""
        self._finish(trainer)
        if trainer.global_step != self._saved_at:
            self._save(trainer)
            self._finish(trainer)
        if self._agree_to_retry(trainer):
            self._save(trainer)
            self._finish(trainer)
            if self._agree_to_retry(trainer):
                raise SaveError(
                    f"the checkpoint of step {trainer.global_step} could not be written to {self.folder}: "
                    f"{trainer.strategy.broadcast(self._why)}. Older ones are intact. Remove the cause and repeat the "
                    "command to resume from the newest one"
                )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def _io(self, trainer: L.Trainer) -> AtomicCheckpointIO:
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, AtomicCheckpointIO), "SaveCheckpoint needs Trainer(plugins=[AtomicCheckpointIO(), ..])"
        return io

    def _save(self, trainer: L.Trainer) -> None:
        start = time.perf_counter()
        if self._io(trainer).busy and not self._said_slow:
            self._said_slow = True
            rank_zero_warn(
                "checkpoint: training waits, because the previous checkpoint is still being written. Save less often "
                "(callbacks.checkpoint.every_n_steps), or to a faster disk"
            )
        self._finish(trainer)
        self._saved_at, self._retry = trainer.global_step, False
        trainer.save_checkpoint(path_of(self.folder, trainer.global_step), weights_only=False)
        log_metrics(trainer, {"checkpoint/pause_ms": 1000 * (time.perf_counter() - start)})

    def _finish(self, trainer: L.Trainer) -> None:
        self._io(trainer).wait()
        self._report(trainer)

    def _report(self, trainer: L.Trainer) -> None:
        """Reports the outcome of the last save if it has ended; only rank 0, which writes, has the outcome."""
        outcome = self._io(trainer).take_outcome()
        if outcome is None:
            return
        if outcome.error is None:
            log_metrics(trainer, {"checkpoint/write_s": outcome.seconds})
            return
        self._failures, self._retry = self._failures + 1, True
        log_metrics(trainer, {"checkpoint/failed": self._failures})
        self._why = str(outcome.error)
        space = room(self.folder, self._io(trainer).num_bytes) if is_full(outcome.error) else ""
        rank_zero_warn(
            f"checkpoint: step {self._saved_at} could not be written: {self._why}. Training continues, and another "
            f"attempt follows within {self._retry_every_n_steps} steps; older checkpoints are intact"
            + (f". {space}" if space else "")
        )
        self._why += f" ({space})" if space else ""

    def _agree_to_retry(self, trainer: L.Trainer) -> bool:
        """Returns, on all ranks, whether rank 0's last save failed."""
        return trainer.strategy.broadcast(self._retry)
