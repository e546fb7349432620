"""The LightningModule: the ε-prediction loss, EMA weights, and validation that repeats exactly."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.diffusion.guidance import drop
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.models.representations import Waveform
from audio_diffusion.seeding import seed_of
from audio_diffusion.training.ema import EmaWeights
from audio_diffusion.training.optim import parameter_groups

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, cover [0, 1) evenly however many there are


def _conditions(batch: AudioBatch) -> dict[str, Tensor]:
    return {} if batch.label is None else {"label": batch.label}


class DiffusionModule(L.LightningModule):
    """Trains ``net`` to invert ``process`` (DDPM algorithm 1) on what ``representation`` makes of audio.

    The t and noise of a sample are drawn by generators keyed by (seed, the sample's position in the stream): they
    are the same on any number of ranks, and after a resume. Nothing is logged here: callbacks do, from what the
    steps return.

    Args:
        net: net(x_t, t, cond) -> output of x_t's shape.
        process: schedule, parameterization and loss.
        representation: audio <-> x0.
        optimizer: makes the optimizer from parameter groups; its ``weight_decay`` goes to matrices and kernels only.
        lr_schedule: makes the learning-rate schedule, in optimizer steps.
        weight_decay: of matrices and kernels.
        ema_decay: of the averaged weights.
        cond_dropout: probability that a sample is trained without its conditions, for classifier-free guidance.
        mask_padding: leave padding out of the loss. Then the network never learns that short clips end in silence.
        strata: each u is drawn from one of so many equal ranges of [0, 1), in turn by position: with the global batch
            size every optimizer step sees all noise levels evenly; 1 draws them independently.
        compile: ``torch.compile`` the network.
        seed: of t, noise and dropout.
        recipe: plain data that says how to build all this again; stored in every checkpoint.

    Raises:
        ValueError: if ``cond_dropout`` lies outside [0, 1], or ``strata`` is below 1.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Diffusion,
        representation: Waveform,
        optimizer: Callable[[list[dict]], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler],
        weight_decay: float = 0.01,
        ema_decay: float = 0.9999,
        cond_dropout: float = 0.1,
        mask_padding: bool = False,
        strata: int = 1,
        compile: bool = False,
        seed: int = 0,
        recipe: dict[str, Any] | None = None,
    ):
        super().__init__()
        if not 0 <= cond_dropout <= 1:
            raise ValueError(f"cond_dropout: expected 0 to 1, got {cond_dropout}")
        if strata < 1:
            raise ValueError(f"strata: expected 1 or more, got {strata}")
        self.net, self.ema = net, EmaWeights(net, ema_decay)
        self.process, self.representation = process, representation
        self.make_optimizer, self.make_lr_schedule = optimizer, lr_schedule
        self.weight_decay, self.cond_dropout, self.mask_padding = weight_decay, cond_dropout, mask_padding
        self.seed, self.recipe, self.strata = seed, recipe, strata
        self._sharded = False
        if compile:
            self.net.compile()  # in place: names in the checkpoint stay as they are

    def configure_model(self) -> None:
        """Shards the network and its EMA copy block by block, where the strategy asks for it (trainer=fsdp).

        Weights are sharded over the devices of a node and replicated over nodes.
        """
        if self.device_mesh is None or self._sharded:
            return
        self._sharded = True
        for net in (self.net, self.ema.net):
            for blocks in [m for m in net.modules() if isinstance(m, nn.ModuleList)]:
                for block in blocks:
                    if not isinstance(block, nn.ModuleList):
                        fully_shard(block, mesh=self.device_mesh)
            fully_shard(net, mesh=self.device_mesh, reshard_after_forward=True)  # also where no backward follows

    def _draws(self, batch: AudioBatch, like: Tensor, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """u ``[B]`` and v ``[B]`` uniform in [0, 1), and noise of ``like``'s shape, keyed by each sample's position."""
        device = like.device
        uniform, noise = torch.empty(len(batch), 2, device=device), torch.empty_like(like)
        generator = torch.Generator(device=device)
        for i, position in enumerate(batch.positions):
            generator.manual_seed(seed_of(self.seed, purpose, position))
            uniform[i].uniform_(generator=generator)
            noise[i].normal_(generator=generator)
        return uniform[:, 0], uniform[:, 1], noise

    def _losses(self, net: nn.Module, batch: AudioBatch, x0: Tensor, noise: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Loss of each sample ``[B]``, 0 for empty slots."""
        mask = batch.mask if self.mask_padding else batch.valid[:, None, None]
        return self.process.loss(net, x0, noise, t, cond, mask)

    def training_step(self, batch: AudioBatch, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch: mean over its valid samples; also each sample's loss and t, for the diagnostics."""
        x0 = self.representation.encode(batch.audio)
        u, v, noise = self._draws(batch, x0, "train")
        stratum = torch.tensor([position % self.strata for position in batch.positions], device=u.device)
        t = self.process.time_of((stratum + u) / self.strata)
        losses = self._losses(self.net, batch, x0, noise, t, drop(_conditions(batch), v < self.cond_dropout))
        loss = losses.sum() / batch.valid.sum().clamp(min=1)
        return {"loss": loss, "losses": losses.detach(), "t": t}

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> dict[str, Tensor]:
        """Losses of the raw and the EMA weights on fixed (clip, t, noise): sums over the batch, and the count.

        t comes from a sequence that covers [0, 1) evenly, noise from the clip's place: two validations of the same
        weights agree exactly.
        """
        x0 = self.representation.encode(batch.audio)
        _, _, noise = self._draws(batch, x0, "val")
        u = torch.tensor(batch.positions, dtype=torch.float64) * _GOLDEN % 1
        t = self.process.time_of(u).to(x0.device)
        raw = self._losses(self.net, batch, x0, noise, t, _conditions(batch))
        ema = self._losses(self.ema.net, batch, x0, noise, t, _conditions(batch))
        return {"raw": raw.sum(), "ema": ema.sum(), "count": batch.valid.sum()}

    def configure_optimizers(self) -> Any:
        """One optimizer over two parameter groups, and a learning rate that changes every step."""
        optimizer = self.make_optimizer(parameter_groups(self.net, self.weight_decay))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_lr_schedule(optimizer), "interval": "step"},
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, then the EMA: once per *optimizer* step, however many batches it accumulates."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.net)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.recipe
