"""train.py, watched: what each rank was given, drew and made is written to $PROBE/<rank>.pt when it ends.

Started in place of train.py through the fixture ``launch``; what is watched is not changed.
"""

import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from audio_diffusion.callbacks import sampling
from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.training.loss import TrainingLoss
from audio_diffusion.training.module import DiffusionModule


class Probe(L.Callback):
    """Keeps what it sees of one rank."""

    def __init__(self) -> None:
        self.trained: list[tuple[int, tuple[int, ...]]] = []  # (optimizer steps done, positions)
        self.validated: list[tuple[int, ...]] = []
        self.without_gradient: set[str] = set()
        self.noise: dict[int, Tensor] = {}  # by position
        self.slots: list[Sequence[int]] = []  # seeds of each round of sampling

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: AudioBatch, batch_idx: int) -> None:
        self.trained.append((trainer.global_step, batch.positions))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: AudioBatch, *args: Any) -> None:
        self.validated.append(batch.positions)

    def on_before_optimizer_step(self, trainer: Any, pl_module: DiffusionModule, optimizer: Any) -> None:
        self.without_gradient |= {name for name, p in pl_module.net.named_parameters() if p.grad is None}

    def on_train_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        state = pl_module.state_dict()
        whole = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}
        on_this_rank = sum(v.to_local().numel() if isinstance(v, DTensor) else v.numel() for v in state.values())
        seen = {
            **{name: getattr(self, name) for name in ("trained", "validated", "without_gradient", "noise", "slots")},
            "state": whole,
            "elements": on_this_rank,
            "dtypes": {str(p.dtype) for p in pl_module.parameters()},
            "moments": {str(v.dtype) for s in trainer.optimizers[0].state.values() for v in s.values()},
            "ddp": getattr(trainer.strategy, "_ddp_kwargs", {}),
        }
        torch.save(seen, Path(os.environ["PROBE"]) / f"{trainer.global_rank}.pt")


probe = Probe()
draws, generate, fit = TrainingLoss.draws, sampling.generate_audio, L.Trainer.fit


def watched_draws(self: TrainingLoss, positions: Sequence[int], like: Tensor, purpose: str) -> Any:
    drawn = draws(self, positions, like, purpose)
    if purpose == "train":
        probe.noise |= dict(zip(positions, drawn[2].clone(), strict=True))
    return drawn


def watched_generate(*args: Any, **kwargs: Any) -> Tensor:
    probe.slots.append(args[5])
    return generate(*args, **kwargs)


def watched_fit(self: L.Trainer, *args: Any, **kwargs: Any) -> None:
    self.callbacks.append(probe)  # type: ignore[attr-defined]
    fit(self, *args, **kwargs)


if __name__ == "__main__":
    TrainingLoss.draws = watched_draws  # type: ignore[method-assign]
    sampling.generate_audio = watched_generate
    L.Trainer.fit = watched_fit  # type: ignore[method-assign]
    runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
