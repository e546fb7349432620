"""Curves: training loss by noise level, gradient norm, learning rate, validation loss of raw and EMA weights."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from audio_diffusion.callbacks.loggers import log_metrics


class Diagnostics(L.Callback):
    """Logs every ``every_n_steps`` optimizer steps, and after each validation.

    Losses are summed on the device and fetched only when they are logged, over all ranks.

    Args:
        every_n_steps: optimizer steps between rows.
        num_buckets: equal ranges of t that the training loss is also given for; a range without a sample is left out.

    Raises:
        ValueError: for numbers below 1.
    """

    def __init__(self, every_n_steps: int = 20, num_buckets: int = 5):
        for name, value in {"every_n_steps": every_n_steps, "num_buckets": num_buckets}.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.every_n_steps, self.num_buckets = every_n_steps, num_buckets
        self._sums: Tensor | None = None  # [2, buckets]: sum of losses, number of samples
        self._validation: Tensor | None = None  # [3]: sum of raw losses, of EMA losses, number of samples
        self._grad_norm: Tensor | None = None
        self._logged_at = -1

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if (trainer.global_step + 1) % self.every_n_steps == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._grad_norm = torch.nn.utils.get_total_norm(gradients)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        losses, t = outputs["losses"], outputs["t"]
        if self._sums is None:
            self._sums = torch.zeros(2, self.num_buckets, device=losses.device)
        bucket = (t * self.num_buckets).ceil().long().clamp(1, self.num_buckets) - 1
        self._sums[0].index_add_(0, bucket, losses)
        self._sums[1].index_add_(0, bucket, batch.valid.to(losses.dtype))
        step = trainer.global_step
        if step % self.every_n_steps or step == self._logged_at or step == 0:
            return
        self._logged_at = step
        sums: Tensor = trainer.strategy.reduce(self._sums, reduce_op="sum")  # type: ignore[assignment]
        total, count = sums.cpu().double()
        self._sums = None
        metrics = {"train/loss": (total.sum() / count.sum().clamp(min=1)).item()}
        for i in range(self.num_buckets):
            if count[i] > 0:
                low, high = i / self.num_buckets, (i + 1) / self.num_buckets
                metrics[f"train/loss_t_{low:.1f}-{high:.1f}"] = (total[i] / count[i]).item()
        if self._grad_norm is not None:
            metrics["train/grad_norm"] = float(self._grad_norm)
        metrics["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        log_metrics(trainer, metrics)
        pl_module.log("loss", metrics["train/loss"], prog_bar=True, logger=False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The sums of all ranks ``[ranks, 2, buckets]``: the first row after a resume is what it would have been."""
        sums = torch.zeros(2, self.num_buckets, device=pl_module.device) if self._sums is None else self._sums
        checkpoint["diagnostics"] = trainer.strategy.all_gather(sums).reshape(-1, 2, self.num_buckets)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        sums = checkpoint.get("diagnostics")
        if sums is None or sums.shape[-1] != self.num_buckets:
            return
        if len(sums) != trainer.world_size:  # they are added up over the ranks anyway
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
        values = torch.stack([outputs["raw"].double(), outputs["ema"].double(), outputs["count"].double()])
        self._validation = values if self._validation is None else self._validation + values

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validation is None or trainer.sanity_checking:
            return
        total: Tensor = trainer.strategy.reduce(self._validation, reduce_op="sum")  # type: ignore[assignment]
        raw, ema, count = total.tolist()
        metrics = {"val/loss": raw / max(count, 1), "val/loss_ema": ema / max(count, 1)}
        log_metrics(trainer, metrics)
        pl_module.log("val_loss_ema", metrics["val/loss_ema"], prog_bar=True, logger=False)
