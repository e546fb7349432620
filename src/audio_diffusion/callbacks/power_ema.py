"""Keeps power-function averages of the weights during training, so that the length is chosen afterwards."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from audio_diffusion.callbacks.loggers import log_metrics
from audio_diffusion.checkpoints import averages
from audio_diffusion.checkpoints.background import BackgroundWriter
from audio_diffusion.checkpoints.folder import path_of, problem_of
from audio_diffusion.checkpoints.snapshot import HostCopy, num_bytes
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.inference.averages import gamma_of
from audio_diffusion.training.module import DiffusionModule
from audio_diffusion.training.power_ema import PowerEma


class KeepPowerEma(L.Callback):
    """Averages the weights over several relative lengths, and writes snapshots from which other lengths are rebuilt.

    The averages are updated with the EMA after each optimizer step that is not skipped, and are part of each
    checkpoint. Rank 0 writes the snapshots in the background. A failed write causes a warning and is counted in
    ``power_ema/failed``; averages can be rebuilt from the other snapshots. Training itself is not changed.

    Args:
        folder: the folder of the snapshots.
        lengths: relative lengths of the averages; two suffice.
        every_n_steps: optimizer steps between snapshots; None for a hundredth of ``max_steps``. Another follows the
            last step.
        dtype: dtype of stored snapshots, float32 or float16. With float16 they take half the space, and the rounding
            limits lengths from 0.04 to a relative error of 1e-3, shorter ones to about 1e-2.
        device: device on which the averages are kept, "cpu" for instance; None for that of the weights.

    Raises:
        ValueError: for lengths out of range, fewer than two different ones, or ``every_n_steps`` below 1.
    """

    def __init__(
        self,
        folder: str,
        lengths: Sequence[float] = (0.05, 0.10),
        every_n_steps: int | None = None,
        dtype: str = "float32",
        device: str | None = None,
    ):
        if len(set(lengths)) != len(lengths) or len(lengths) < 2:
            raise ValueError(f"lengths: expected two or more different ones, got {list(lengths)}")
        for length in lengths:
            gamma_of(length)
        check_at_least_one(every_n_steps=every_n_steps)
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype: expected float32 or float16, got {dtype!r}")
        self.folder, self.lengths, self.every_n_steps = Path(folder), sorted(lengths), every_n_steps
        self.dtype, self.device = dtype, device
        self.power_ema: PowerEma | None = None
        self._net: Any = None
        self._loaded: dict[str, Any] = {}
        self._copies, self._writer = HostCopy(), BackgroundWriter()
        self._written_at, self._failures = -1, 0
        self._global_zero, self._said_size = True, False

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages, as whole tensors; of a sharded network on rank 0 only."""
        if self.power_ema is None:
            return self._loaded
        snapshot = self.power_ema.snapshot(self._net, step=-1, keep=self._global_zero)
        return {name: getattr(snapshot, name) for name in ("origin", "num_updates", "lengths", "averages")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins or continues the averages; the weights must already be on their device."""
        assert isinstance(pl_module, DiffusionModule)
        step, self._net, self._global_zero = trainer.global_step, pl_module.net, trainer.is_global_zero
        self.power_ema = PowerEma(self._net, self.lengths, step, self.device)
        if self._loaded and list(self._loaded["lengths"]) == self.lengths:
            self.power_ema.load(self._net, self._loaded)
        elif step:
            has = f"has those of lengths {list(self._loaded['lengths'])}" if self._loaded else "has none"
            rank_zero_warn(
                f"power_ema: the averages of lengths {self.lengths} begin at step {step}, as the checkpoint {has}"
            )
        self._loaded = {}
        pl_module.averages.append(self.power_ema)
        self._begin_folder(trainer)

    def _begin_folder(self, trainer: L.Trainer) -> None:
        """Sets the interval, and restores the folder to its state at this step."""
        assert self.power_ema is not None
        if self.every_n_steps is None:
            if trainer.max_steps < 1:
                raise ValueError("every_n_steps: expected a number, as the run has no max_steps")
            self.every_n_steps = max(1, trainer.max_steps // 100)
        step, missing = trainer.global_step, False
        if trainer.is_global_zero:
            if gone := averages.rewind(self.folder, step, self.every_n_steps):
                rank_zero_info(f"{self.folder}: {gone} averages of steps that are trained again were removed")
            # the process may have been killed between the checkpoint of this step and its snapshot
            missing = step % self.every_n_steps == 0 and problem_of(path_of(self.folder, step)) is not None
        self._written_at = step
        if self.power_ema.num_updates and trainer.strategy.broadcast(missing):
            self._write(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._report(trainer)
        assert self.every_n_steps is not None
        if trainer.global_step != self._written_at and trainer.global_step % self.every_n_steps == 0:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._written_at:
            self._write(trainer)
        self._finish(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.power_ema is not None and isinstance(pl_module, DiffusionModule):
            pl_module.averages.remove(self.power_ema)

    def _write(self, trainer: L.Trainer) -> None:
        """Copies the averages and writes them in the background, on rank 0; all ranks must call it."""
        assert self.power_ema is not None
        self._written_at = trainer.global_step
        if not self.power_ema.num_updates:  # all steps so far were skipped
            return
        snapshot = self.power_ema.snapshot(self._net, trainer.global_step, keep=trainer.is_global_zero)
        if not trainer.is_global_zero:
            return
        self._finish(trainer)
        snapshot = snapshot.halved() if self.dtype == "float16" else snapshot
        content = self._copies.take(vars(snapshot))
        if not self._said_size:
            self._said_size = True
            rank_zero_info(
                f"power_ema: a snapshot of {num_bytes(content) / 1e6:.1f} MB every {self.every_n_steps} steps in "
                f"{self.folder}"
            )
        self._writer.start(partial(averages.write, self.folder, content, trainer.world_size))

    def _finish(self, trainer: L.Trainer) -> None:
        self._writer.wait()
        self._report(trainer)

    def _report(self, trainer: L.Trainer) -> None:
        outcome = self._writer.take_outcome()
        if outcome is not None and outcome.error is not None:
            self._failures += 1
            log_metrics(trainer, {"power_ema/failed": self._failures})
            rank_zero_warn(f"power_ema: a snapshot was not written: {outcome.error}. Training continues without it")
