"""Measures bits per dimension during training: the variational bound of the EMA weights on held-out clips."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from audio_diffusion.callbacks.cluster.preemption import is_stopping
from audio_diffusion.callbacks.failures import FailureTolerance
from audio_diffusion.callbacks.loggers import log_metrics, log_pictures
from audio_diffusion.callbacks.validations import ValidationCount
from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.metrics import charts, pictures
from audio_diffusion.metrics.bits import BoundMeter, ClipBounds
from audio_diffusion.training.module import DiffusionModule


class LogLikelihood(L.Callback):
    """Measures the first held-out clips at every n-th validation: ``val/bits_per_dim``, its parts, errors and picture.

    The noise of a clip depends on its name, so two measurements of the same weights agree exactly, also with
    evaluate.py. Each rank measures the clips that it validates; the results are gathered. It takes num_levels + 1
    network evaluations per clip and repeat; validation takes 2 per clip. If a batch fails on any rank, all ranks leave
    it out, with a warning.

    Args:
        folder: folder for the pictures ``step_<step>.png``.
        every_n_validations: validations between measurements.
        num_clips: number of held-out clips to measure, from the first.
        num_levels: number of noise levels for each clip and repeat.
        repeats: number of estimates for each clip; 2 or more give their error.
        seed: seed of the noise.

    Raises:
        ValueError: for numbers below 1.
    """

    def __init__(
        self,
        folder: str,
        every_n_validations: int = 1,
        num_clips: int = 64,
        num_levels: int = 16,
        repeats: int = 2,
        seed: int = 0,
    ):
        check_at_least_one(every_n_validations=every_n_validations, num_clips=num_clips)
        self.folder, self.num_clips = Path(folder), num_clips
        self.meter, self.seed = BoundMeter(num_levels, repeats), seed
        self._validations, self._tolerance = ValidationCount(every_n_validations), FailureTolerance("likelihood")
        self._found: list[tuple[tuple[int, ...], ClipBounds]] = []  # (positions, bounds) of each batch

    def state_dict(self) -> dict[str, Any]:
        return self._validations.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations.load_state_dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validations.catch_up(trainer)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._found = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, DiffusionModule)
        # all ranks measure the same number of batches, which sharded networks require
        begun = batch_idx * len(batch) * trainer.world_size >= self.num_clips
        if trainer.sanity_checking or begun or not self._validations.is_chosen:
            return
        bounds = self._tolerance.on_all_ranks(trainer, lambda: self._measure(pl_module, batch))
        if bounds is not None:
            self._found.append((batch.positions, bounds))

    def _measure(self, module: DiffusionModule, batch: AudioBatch) -> ClipBounds:
        return self.meter(
            module.process.denoiser(module.ema.net, module.cond_of(batch)),
            module.process.schedule,
            batch.audio,
            batch.mask,
            module.representation,
            [(self.seed, key) for key in batch.keys],
        )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations.take(trainer)
        if not self._found or is_stopping(trainer):
            return
        positions = torch.tensor([p for found, _ in self._found for p in found])
        bounds = ClipBounds.join([bounds for _, bounds in self._found])
        if trainer.world_size > 1:
            positions = _gathered(pl_module, positions)
            bounds = ClipBounds(*(_gathered(pl_module, getattr(bounds, f.name)) for f in fields(bounds)))
        order = positions.argsort()
        bounds = bounds[order[(bounds.dims[order] > 0) & (positions[order] < self.num_clips)]]
        if trainer.is_global_zero and len(bounds.dims):
            self._tolerance.on_this_rank(lambda: self._write(trainer, bounds))

    def _write(self, trainer: L.Trainer, bounds: ClipBounds) -> None:
        whole, parts = bounds.estimate(), bounds.parts()
        metrics = {f"val/bits_{name}": part.bits_per_dim for name, part in parts.items()}
        metrics |= {"val/bits_per_dim": whole.bits_per_dim, "val/bits_standard_error": whole.standard_error}
        log_metrics(trainer, {**metrics, "val/bits_monte_carlo_error": whole.monte_carlo_error})
        curve = bounds.curve()
        figure = charts.noise_levels(curve.snr_db, curve.loss, curve.bits_per_db, bounds.describe())
        path = pictures.save(figure, self.folder / f"step_{trainer.global_step:08d}.png")
        log_pictures(trainer, {"val/noise_levels": path})


def _gathered(module: L.LightningModule, values: Tensor) -> Tensor:
    """Gathers ``[N, ..]`` of every rank as ``[ranks · N, ..]`` on the CPU."""
    return torch.as_tensor(module.all_gather(values.to(module.device))).flatten(0, 1).cpu()
