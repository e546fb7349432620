"""Logs losses, gradient norm and learning rate; warns of skipped steps and of jumps of the loss."""

import math
import statistics
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from audio_diffusion.callbacks.cluster.preemption import is_stopping
from audio_diffusion.callbacks.loggers import log_metrics, send_alert
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.diffusion.float64 import in_double
from audio_diffusion.training.module import DiffusionModule

_ALERT_ROWS = 20  # number of logged losses whose median is the recent level
_NAMED = 5  # number of clips that a warning names


class Diagnostics(L.Callback):
    """Logs losses and diagnostics every ``every_n_steps`` optimizer steps, and after each validation.

    Losses are summed on the device; they are gathered from all ranks only when they are logged. Values that are not
    finite are left out. A skipped step (``training.guard``) causes a warning at once, with the clips that caused
    it, and is counted in ``train/skipped_steps``. A sudden rise of the loss causes a warning, in W&B too.

    Args:
        every_n_steps: optimizer steps between log rows.
        num_buckets: number of equal ranges of t for which the training loss is logged separately; ranges without a
            sample are left out.
        alert_growth: factor over the median of the last 20 logged losses above which a loss causes a warning; None for
            no warnings.

    Raises:
        ValueError: if ``every_n_steps`` or ``num_buckets`` is below 1, or ``alert_growth`` is 1 or less.
    """

    def __init__(self, every_n_steps: int = 20, num_buckets: int = 5, alert_growth: float | None = 3.0):
        check_at_least_one(every_n_steps=every_n_steps, num_buckets=num_buckets)
        if alert_growth is not None and not alert_growth > 1:
            raise ValueError(f"alert_growth: expected above 1, or null, got {alert_growth}")
        self.every_n_steps, self.num_buckets, self.alert_growth = every_n_steps, num_buckets, alert_growth
        self._losses: deque[float] = deque(maxlen=_ALERT_ROWS)
        self._alerted = False
        self._step: list[
            tuple[Sequence[str], Sequence[int], Tensor]
        ] = []  # keys, positions, losses of the step's batches
        self._sums: Tensor | None = None  # [2, buckets]: sum of losses, number of samples
        self._validation: Tensor | None = None  # [3]: sum of raw losses, of EMA losses, number of samples
        self._logged_at = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DiffusionModule)
        losses, step = outputs["losses"], trainer.global_step
        self._add(losses, outputs["t"], batch.valid)
        self._step.append((batch.keys, batch.positions, losses))
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if pl_module.guard.reason is not None:
            self._warn_of_skipped(trainer, pl_module)
        self._step = []
        if step % self.every_n_steps == 0 and step != self._logged_at and step > 0:
            self._logged_at = step
            self._log(trainer, pl_module)

    def _add(self, losses: Tensor, t: Tensor, valid: Tensor) -> None:
        if self._sums is None:
            self._sums = torch.zeros(2, self.num_buckets, device=losses.device)
        bucket = (t * self.num_buckets).ceil().long().clamp(1, self.num_buckets) - 1
        finite = losses.isfinite()
        self._sums[0].index_add_(0, bucket, losses.where(finite, 0))
        self._sums[1].index_add_(0, bucket, (valid & finite).to(losses.dtype))

    def _log(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        sums: Tensor = trainer.strategy.reduce(self._sums, reduce_op="sum")  # type: ignore[assignment]
        total, count = sums.cpu().double()
        self._sums = None
        loss = (total.sum() / count.sum().clamp(min=1)).item()
        metrics = {"train/loss": loss}
        for i in range(self.num_buckets):
            if count[i] > 0:
                low, high = i / self.num_buckets, (i + 1) / self.num_buckets
                metrics[f"train/loss_t_{low:.1f}-{high:.1f}"] = (total[i] / count[i]).item()
        if math.isfinite(module.grad_norm):
            metrics["train/grad_norm"] = module.grad_norm
        metrics["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        log_metrics(trainer, {**metrics, "train/skipped_steps": module.guard.num_skipped})
        module.log("loss", loss, prog_bar=True, logger=False)
        self._alert(trainer, loss)

    def _warn_of_skipped(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        """Reports the step and the cause on rank 0, and each clip whose loss is not finite on the rank that has it."""
        bad = [
            f"{key} (position {position} of the stream)"
            for keys, positions, losses in self._step
            for key, position, loss in zip(keys, positions, losses.tolist(), strict=True)
            if not math.isfinite(loss)
        ]
        if not bad and not trainer.is_global_zero:
            return
        rank = f" of rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        clips = f". Clips{rank} whose loss is not finite: {', '.join(bad[:_NAMED])}{more}" if bad else ""
        warnings.warn(
            f"step {trainer.global_step} skipped: {module.guard.reason}{clips}. So far skipped: "
            f"{module.guard.num_skipped} steps, {module.guard.skipped_in_a_row} in a row",
            stacklevel=2,
        )
        log_metrics(trainer, {"train/skipped_steps": module.guard.num_skipped})

    def _alert(self, trainer: L.Trainer, loss: float) -> None:
        """Warns, once per rise, if the loss rises far above its recent level."""
        usual = statistics.median(self._losses) if len(self._losses) == _ALERT_ROWS else math.inf
        high = self.alert_growth is not None and loss > self.alert_growth * usual
        if high and not self._alerted:
            send_alert(
                trainer,
                "the loss has jumped",
                f"step {trainer.global_step}: train/loss is {loss:.4g}, more than {self.alert_growth:g} times the "
                f"{usual:.4g} that is usual (median of {_ALERT_ROWS} rows)",
            )
        self._alerted = high
        self._losses.append(loss)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the sums of all ranks ``[ranks, 2, buckets]``, so that the first row after a resume is unchanged."""
        sums = torch.zeros(2, self.num_buckets, device=pl_module.device) if self._sums is None else self._sums
        checkpoint["diagnostics"] = trainer.strategy.all_gather(sums).reshape(-1, 2, self.num_buckets)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        sums = checkpoint.get("diagnostics")
        if sums is None or sums.shape[-1] != self.num_buckets:
            return
        if len(sums) != trainer.world_size:  # the ranks are summed anyway
            sums = torch.nn.functional.pad(sums.sum(0, keepdim=True), (0, 0, 0, 0, 0, trainer.world_size - 1))
        self._sums = sums[trainer.global_rank].to(pl_module.device)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        values = torch.stack([in_double(outputs[name]) for name in ("raw", "ema", "count")])
        self._validation = values if self._validation is None else self._validation + values

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validation is None or trainer.sanity_checking or is_stopping(trainer):  # an incomplete average
            return
        total: Tensor = trainer.strategy.reduce(self._validation, reduce_op="sum")  # type: ignore[assignment]
        raw, ema, count = total.tolist()
        if not count:
            rank_zero_warn("validation: none of the held-out clips could be used, so there is no val/loss")
            return
        metrics = {"val/loss": raw / count, "val/loss_ema": ema / count}
        log_metrics(trainer, metrics)
        pl_module.log("val_loss_ema", metrics["val/loss_ema"], prog_bar=True, logger=False)
