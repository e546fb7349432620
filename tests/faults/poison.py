"""Parts that fail on purpose, which a launched train.py takes in place of its own, by their ``_target_``."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from audio_diffusion.diffusion.solvers.ddim import ddim


def _on_the_last_rank() -> bool:
    world = torch.distributed.is_initialized()
    return not world or torch.distributed.get_rank() == torch.distributed.get_world_size() - 1


class NanAtStep(L.Callback):
    """Makes one clip of the last rank NaN in one step. It takes Throughput's place, so its options are called so."""

    def __init__(self, sample_rate: int, every_n_steps: int):
        self.step = every_n_steps

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step + 1 == self.step and _on_the_last_rank():
            batch.audio[0] = torch.nan


calls = 0


def ddim_out_of_memory(denoise: Any, x_t: Tensor, schedule: Any, draw_noise: Any, **options: Any) -> Tensor:
    """ddim whose first two calls in training fail on the last rank: a round, and its second try."""
    global calls
    if x_t.dtype == torch.float64:  # the measure of its levels, before training
        return ddim(denoise, x_t, schedule, draw_noise, **options)
    calls += 1
    if calls <= 2 and _on_the_last_rank():
        raise torch.OutOfMemoryError("no memory is left, on purpose")
    return ddim(denoise, x_t, schedule, draw_noise, **options)
