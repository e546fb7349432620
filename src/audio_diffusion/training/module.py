"""The LightningModule: the ε-prediction loss, EMA weights, and validation that repeats exactly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.diffusion.guidance import drop
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.networks.conditions.condition import Conditions
from audio_diffusion.networks.network import check_network
from audio_diffusion.representations.representation import Representation, check_representation
from audio_diffusion.training.ema import EmaWeights
from audio_diffusion.training.fsdp import shard
from audio_diffusion.training.guard import StepGuard
from audio_diffusion.training.optim import parameter_groups

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, cover [0, 1) evenly however many there are


class WeightAverage(Protocol):
    """An average of a network's weights."""

    def update(self, net: nn.Module) -> None:
        """Updates the average with the weights after an optimizer step."""


def _rates(cond_dropout: float | dict[str, float], conditions: Conditions) -> dict[str, float]:
    """Returns the dropout rate of each condition by name, and of "all" conditions together."""
    rates = cond_dropout if isinstance(cond_dropout, dict) else {"all": cond_dropout}
    for name, rate in rates.items():
        if name != "all" and name not in conditions.by_name:
            has = ", ".join(["all", *conditions.by_name])
            raise ValueError(f"cond_dropout: expected names among {has}, got {name!r}")
        if not 0 <= rate <= 1:
            raise ValueError(f"cond_dropout: expected 0 to 1, got {rate} for {name}")
    return rates


class DiffusionModule(L.LightningModule):
    """Trains ``net`` to invert ``process`` (DDPM algorithm 1) on audio encoded by ``representation``.

    The t and noise of a sample are drawn by generators keyed by (seed, the sample's position in the stream), so they
    are the same on any number of ranks and after a resume. The module logs nothing; callbacks log the values that the
    steps return.

    Args:
        net: net(x_t, t, cond) -> output of x_t's shape; its ``conditions`` prepare cond.
        process: schedule, parameterization and loss.
        representation: conversion between audio and x0.
        optimizer: creates the optimizer from parameter groups.
        lr_schedule: creates the learning-rate schedule, in optimizer steps.
        weight_decay: weight decay of matrices and kernels; other parameters have none.
        ema_decay: decay of the averaged weights.
        cond_dropout: probability that a sample is trained without any of its conditions, as classifier-free guidance
            needs. A dict gives one probability for each condition by name, dropped independently of the others, and
            one for "all": ``{all: 0.1, caption: 0.2}``.
        mask_padding: whether to leave padding out of the loss. The network then does not learn that short clips end in
            silence.
        strata: number of equal ranges of [0, 1) from which u is drawn, in turn by position. With the global batch size
            every optimizer step covers all noise levels evenly; with 1 they are drawn independently.
        compile: whether to ``torch.compile`` the network.
        seed: seed of t, noise and dropout.
        guard: decides which steps are skipped; None for ``StepGuard()``.
        recipe: plain data from which the module can be rebuilt; stored in every checkpoint.

    Raises:
        ValueError: if the network or representation lacks a member of its contract, ``cond_dropout`` lies outside
            [0, 1] or names a condition that the network does not have, or ``strata`` is below 1.
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
        cond_dropout: float | dict[str, float] = 0.1,
        mask_padding: bool = False,
        strata: int = 1,
        compile: bool = False,
        seed: int = 0,
        guard: StepGuard | None = None,
        recipe: dict[str, Any] | None = None,
    ):
        super().__init__()
        check_network(net)
        check_representation(representation)
        if strata < 1:
            raise ValueError(f"strata: expected 1 or more, got {strata}")
        self.net, self.ema = net, EmaWeights(net, ema_decay)
        self.process, self.representation = process, representation
        self.make_optimizer, self.make_lr_schedule = optimizer, lr_schedule
        self.weight_decay, self.mask_padding = weight_decay, mask_padding
        self.cond_dropout = _rates(cond_dropout, self.conditions)
        self.seed, self.recipe, self.strata = seed, recipe, strata
        self.guard, self.grad_norm = guard or StepGuard(), 0.0  # norm of the latest step's gradient, before clipping
        self.averages: list[WeightAverage] = []  # updated with the EMA; callbacks add them
        self._sharded = False
        self.compute_dtype = torch.float32  # of the raw network (not the EMA); training.precision may change it
        if compile:
            self.net.compile()  # in place: names in the checkpoint stay as they are

    @property
    def conditions(self) -> Conditions:
        """The network's conditions."""
        return self.net.conditions  # type: ignore[return-value]

    def cond_of(self, batch: AudioBatch) -> Mapping[str, Tensor]:
        """Prepares the network's conditions from a batch."""
        return self.conditions.read({**batch.cond, "audio": batch.audio}, batch.audio.device)

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

    def _draws(self, batch: AudioBatch, like: Tensor, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """Draws u ``[B]`` and v ``[B]``, uniform in [0, 1), and noise of ``like``'s shape, keyed by each sample's
        position in the stream."""
        device = like.device
        uniform, noise = torch.empty(len(batch), 2, device=device), torch.empty_like(like)
        generator = torch.Generator(device=device)
        for i, position in enumerate(batch.positions):
            generator.manual_seed(seed_of(self.seed, purpose, position))
            uniform[i].uniform_(generator=generator)
            noise[i].normal_(generator=generator)
        return uniform[:, 0], uniform[:, 1], noise

    def _drop(self, cond: Mapping[str, Tensor], v: Tensor, positions: Sequence[int]) -> Mapping[str, Tensor]:
        """Drops conditions: all those of a sample according to v ``[B]``, and each by a draw keyed by its name."""
        cond = dict(drop(cond, v < self.cond_dropout.get("all", 0.0)))
        for name, rate in self.cond_dropout.items():
            if name != "all":
                where = [seed_of(self.seed, "drop", name, position) < rate * 2**63 for position in positions]
                cond |= drop({name: cond[name]}, torch.tensor(where, device=v.device))
        return cond

    def _losses(self, net: Net, batch: AudioBatch, x0: Tensor, noise: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Returns the loss of each sample ``[B]``, 0 for empty slots."""
        mask = self.representation.mask(batch.mask) if self.mask_padding else batch.valid[:, None, None]
        return self.process.loss(net, x0, noise, t, cond, mask)

    def training_step(self, batch: AudioBatch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the loss of one batch, and each sample's loss and t for the diagnostics.

        An empty slot counts as a sample with loss 0. A sample therefore has the same weight whichever slots are empty,
        on any number of ranks.
        """
        # the network's own randomness (dropout) is seeded by position too, so no generator state has to be saved
        torch.manual_seed(seed_of(self.seed, "net", batch.positions[0]))
        x0 = self.representation.encode(batch.audio)
        u, v, noise = self._draws(batch, x0, "train")
        stratum = torch.tensor([position % self.strata for position in batch.positions], device=u.device)
        t = self.process.time_of((stratum + u) / self.strata)
        cond = self._drop(self.cond_of(batch), v, batch.positions)
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
        _, _, noise = self._draws(batch, x0, "val")
        u = torch.tensor(batch.positions, dtype=torch.float64) * _GOLDEN % 1
        t = self.process.time_of(u).to(x0.device)
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
        checkpoint["config"], checkpoint["guard"] = self.recipe, self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])
