"""The LightningModule: the ε-prediction loss, EMA weights, and validation that repeats exactly."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.networks.conditions.condition import Conditions
from audio_diffusion.networks.network import check_network
from audio_diffusion.representations.representation import Representation, check_representation
from audio_diffusion.training.ema import EmaWeights
from audio_diffusion.training.fsdp import shard
from audio_diffusion.training.guard import StepGuard
from audio_diffusion.training.loss import TrainingLoss
from audio_diffusion.training.optim import parameter_groups


class WeightAverage(Protocol):
    """An average of a network's weights."""

    def update(self, net: nn.Module) -> None:
        """Updates the average with the weights after an optimizer step."""


class DiffusionModule(L.LightningModule):
    """Trains ``net`` to invert ``process`` (DDPM algorithm 1) on audio encoded by ``representation``.

    The module logs nothing; callbacks log the values that the steps return.

    Args:
        net: net(x_t, t, cond) -> output of x_t's shape; its ``conditions`` prepare cond.
        process: schedule, parameterization and loss.
        representation: conversion between audio and x0.
        optimizer: creates the optimizer from parameter groups.
        lr_schedule: creates the learning-rate schedule, in optimizer steps.
        weight_decay: weight decay of matrices and kernels; other parameters have none.
        ema_decay: decay of the averaged weights.
        compile: whether to ``torch.compile`` the network.
        loss: draws t, noise and dropped conditions; None for ``TrainingLoss()``.
        guard: decides which steps are skipped; None for ``StepGuard()``.

    Raises:
        ValueError: if the network or representation lacks a member of its contract, or ``loss.cond_dropout`` names a
            condition that the network does not have.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Diffusion,
        representation: Representation,
        optimizer: Callable[[list[dict]], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler],
        weight_decay: float = 0.01,
        ema_decay: float = 0.9999,
        compile: bool = False,
        loss: TrainingLoss | None = None,
        guard: StepGuard | None = None,
    ):
        super().__init__()
        check_network(net)
        check_representation(representation)
        self.net, self.ema = net, EmaWeights(net, ema_decay)
        self.process, self.representation = process, representation
        self.make_optimizer, self.make_lr_schedule = optimizer, lr_schedule
        self.weight_decay, self.loss = weight_decay, loss or TrainingLoss()
        self.loss.check(self.conditions)
        self.guard, self.grad_norm = guard or StepGuard(), 0.0  # norm of the latest step's gradient, before clipping
        self.averages: list[WeightAverage] = []  # updated with the EMA; callbacks add them
        self._sharded = False
        self.compute_dtype = torch.float32  # of the raw network (not the EMA), see ``setup``
        if compile:
            self.net.compile()  # in place: names in the checkpoint stay as they are

    @property
    def conditions(self) -> Conditions:
        """The network's conditions."""
        return self.net.conditions  # type: ignore[return-value]

    def cond_of(self, batch: AudioBatch) -> Mapping[str, Tensor]:
        """Prepares the network's conditions from a batch."""
        return self.conditions.read({**batch.cond, "audio": batch.audio}, batch.audio.device)

    def setup(self, stage: str | None = None) -> None:
        """Takes the raw network's dtype from the trainer's precision plugin, if that has one for it."""
        self.compute_dtype = getattr(self.trainer.precision_plugin, "network_dtype", torch.float32)

    def configure_model(self) -> None:
        """Shards the network and its EMA copy block by block, if the strategy has a device mesh (trainer=fsdp).

        Weights are sharded over the devices of a node and replicated over nodes.
        """
        if self.device_mesh is None or self._sharded:
            return
        self._sharded = True
        bf16 = self.trainer.precision == "bf16-true"
        shard(self.net, self.device_mesh, torch.bfloat16 if bf16 else torch.float32)
        shard(self.ema.net, self.device_mesh)

    def _trained(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Evaluates the raw network in ``compute_dtype``; t stays float32, and the embedders cast the conditions."""
        if self.compute_dtype == torch.float32:
            return self.net(x_t, t, cond)
        x_t = x_t.to(self.compute_dtype)
        if self._sharded:  # FSDP gathers the weights in this dtype
            return self.net(x_t, t, cond)
        weights = {name: p.to(self.compute_dtype) for name, p in self.net.named_parameters()}
        return functional_call(self.net, weights, (x_t, t, cond))

    def _losses(self, net: Net, batch: AudioBatch, x0: Tensor, noise: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Returns the loss of each sample ``[B]``, 0 for empty slots."""
        return self.process.loss(net, x0, noise, t, cond, self.loss.mask(self.representation, batch))

    def training_step(self, batch: AudioBatch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the loss of one batch, and each sample's loss and t for the diagnostics.

        An empty slot counts as a sample with loss 0. A sample therefore has the same weight whichever slots are empty,
        on any number of ranks.
        """
        self.loss.seed_network(batch.positions)
        x0 = self.representation.encode(batch.audio)
        u, v, noise = self.loss.draws(batch.positions, x0, "train")
        t = self.loss.training_times(self.process, u, batch.positions)
        cond = self.loss.drop(self.cond_of(batch), v, batch.positions)
        losses = self._losses(self._trained, batch, x0, noise, t, cond)
        loss = losses.mean()
        # No-op for a finite loss; NaN otherwise, so gradients turn NaN on every rank and all ranks skip the step.
        return {"loss": loss * (1 + 0 * loss.detach()), "losses": losses.detach(), "t": t}

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the losses of the raw and the EMA weights on fixed (clip, t, noise), summed over the batch, and the
        number of clips.

        t comes from a sequence that covers [0, 1) evenly, and noise is keyed by the clip's position, so two validations
        of the same weights agree exactly.
        """
        x0 = self.representation.encode(batch.audio)
        _, _, noise = self.loss.draws(batch.positions, x0, "val")
        t = self.loss.validation_times(self.process, batch.positions, x0.device)
        cond = self.cond_of(batch)
        raw = self._losses(self._trained, batch, x0, noise, t, cond)
        ema = self._losses(self.ema.net, batch, x0, noise, t, cond)
        return {"raw": raw.sum(), "ema": ema.sum(), "count": batch.valid.sum()}

    def configure_optimizers(self) -> Any:
        """Creates one optimizer over two parameter groups, and a learning-rate schedule that is updated every step.

        Raises:
            ValueError: if the optimizer refuses its options.
        """
        try:
            optimizer = self.make_optimizer(parameter_groups(self.net, self.weight_decay))
        except ValueError as error:
            raise ValueError(f"training.optimizer: {error}") from error
        self._optimizer_options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_lr_schedule(optimizer), "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Applies the configured optimizer options, since loading a checkpoint has restored the stored ones."""
        optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        for group, given in zip(optimizer.param_groups, self._optimizer_options, strict=True):
            scheduled = group["lr"]
            if given["lr"] != group["initial_lr"]:
                # the schedule's factor cannot be computed from a stored rate of 0: use the full rate for one step
                scheduled = scheduled * (given["lr"] / group["initial_lr"]) if group["initial_lr"] else given["lr"]
            group.update(given, initial_lr=given["lr"], lr=scheduled)
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradient, or discards it if the guard rejects the step, so that the optimizer changes nothing.

        The norm is copied from the device once a step, for which the host waits for the backward pass. In return, a
        gradient below the limit is not rescaled.
        """
        parameters = list(self.net.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.grad_norm = norm.item()
        if not self.guard.judge(self.grad_norm):
            for parameter in parameters:
                parameter.grad = None
        elif gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and self.grad_norm > gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the step and updates the EMA and other averages, once per *optimizer* step that is not skipped, for any
        number of accumulated batches."""
        super().optimizer_step(*args, **kwargs)
        if self.guard.reason is None:
            self.ema.update(self.net)
            for average in self.averages:
                average.update(self.net)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])
