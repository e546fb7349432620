"""Measures generated clips during training, with the metrics of evaluate.py."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from audio_diffusion.callbacks.cluster.preemption import Interrupted, beat_or_stop, is_stopping
from audio_diffusion.callbacks.failures import FailureTolerance
from audio_diffusion.callbacks.loggers import log_metrics
from audio_diffusion.callbacks.validations import ValidationCount
from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.diffusion.generation import Sampler
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.inference.generating import generate_audio
from audio_diffusion.metrics.metric import Clips, Figure, Metric, Subject, check_metric
from audio_diffusion.training.module import DiffusionModule


class GenerationMetrics(L.Callback):
    """Generates clips from the EMA weights at every n-th validation, and compares them with held-out clips.

    Logs ``metrics/<figure>``, and ``metrics/<figure>_low`` and ``_high`` for its 95 % interval. Generated clip i has
    the conditions of held-out clip i, taken in turn, and always the same noise. The ranks share the work; rank 0
    measures. The held-out clips are read and embedded once. Training is not affected: all randomness comes from the
    clips' own generators. A measurement that fails is a warning, counted in ``metrics/failures``.

    Args:
        metrics: by name; None leaves one out.
        sampler: one of ``diffusion.solvers``, with its options bound.
        subject: sample rate, channels, classes and seed.
        every_n_validations: validations between measurements.
        num_generated: number of generated clips.
        num_real: number of held-out clips, the first ones; fewer if there are fewer.
        batch_size: clips generated at a time on each rank.
        guidance_scale: scale of classifier-free guidance, 1 for none.

    Raises:
        ValueError: for numbers below 1, no metric, or metrics that need a model or training clips.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric | None],
        sampler: Sampler,
        subject: Subject,
        every_n_validations: int = 1,
        num_generated: int = 128,
        num_real: int = 512,
        batch_size: int = 16,
        guidance_scale: float = 1.0,
    ):
        check_at_least_one(
            every_n_validations=every_n_validations,
            num_generated=num_generated,
            num_real=num_real,
            batch_size=batch_size,
        )
        self.metrics = {name: metric for name, metric in metrics.items() if metric is not None}
        if not self.metrics:
            raise ValueError("metrics: expected at least one, got none")
        for name, metric in self.metrics.items():
            check_metric(metric)
            if "train" in metric.needs or "generated" not in metric.needs:
                raise ValueError(
                    f"metrics.{name}: expected a metric that compares generated with real clips; "
                    f"{type(metric).__name__} needs {', '.join(metric.needs)}: measure it by evaluate.py"
                )
        self.sampler, self.subject = sampler, subject
        self.num_generated, self.num_real, self.batch_size = num_generated, num_real, batch_size
        self.guidance = Guidance(guidance_scale)
        self._validations, self._tolerance = ValidationCount(every_n_validations), FailureTolerance("metrics")
        self._real: AudioBatch | None = None

    def state_dict(self) -> dict[str, Any]:
        return self._validations.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations.load_state_dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validations.catch_up(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or is_stopping(trainer):
            return
        if not self._validations.take(trainer):
            return
        assert isinstance(pl_module, DiffusionModule)
        try:
            self._measure(trainer, pl_module)
        except Interrupted:
            rank_zero_info(f"the metrics of step {trainer.global_step} are skipped, as the run was asked to stop")

    def _measure(self, trainer: L.Trainer, module: DiffusionModule) -> None:
        real = self._tolerance.on_all_ranks(trainer, lambda: self._held_out(trainer))
        if real is None:
            return
        made = self._tolerance.on_all_ranks(trainer, lambda: self._generate(trainer, module, real))
        if made is None:
            return
        gathered = torch.as_tensor(module.all_gather(made)).flatten(0, 1) if trainer.world_size > 1 else made
        if trainer.is_global_zero:
            self._tolerance.on_this_rank(lambda: self._log(trainer, gathered[: self.num_generated].cpu()))

    def _held_out(self, trainer: L.Trainer) -> AudioBatch:
        """Returns the held-out clips; at the first call reads them and, on rank 0, measures them."""
        if self._real is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, AudioDataModule)
            if data.val_shards is None:
                raise ValueError("the metrics need held-out clips, and this run has none")
            count = min(self.num_real, int(data.val_shards.num_clips.sum()))
            if count < self.num_real:
                rank_zero_warn(f"metrics: {count} clips are held out, fewer than num_real={self.num_real}")
            self._real = data.held_out(count)
            for metric in self.metrics.values():
                metric.start(self.subject)
                if "real" in metric.needs and trainer.is_global_zero:
                    metric.update(self._clips(self._real.audio, self._real.mask, self._real), "real")
        return self._real

    def _generate(self, trainer: L.Trainer, module: DiffusionModule, real: AudioBatch) -> Tensor:
        """Generates this rank's share ``[n, C, T]``, the same number on every rank; surplus clips repeat."""
        share = -(-self.num_generated // trainer.world_size)
        mine = [(trainer.global_rank * share + i) % self.num_generated for i in range(share)]
        cond = module.cond_of(real.to(module.device))
        made = []
        for start in range(0, share, self.batch_size):
            numbers = mine[start : start + self.batch_size]
            made.append(
                generate_audio(
                    module.ema.net,
                    module.process,
                    self.sampler,
                    module.representation,
                    real.audio.shape[1:],
                    [seed_of(self.subject.seed, "measured", number) for number in numbers],
                    {name: value[[number % len(real) for number in numbers]] for name, value in cond.items()},
                    self.guidance,
                    module.device,
                    on_step=lambda t, x0: beat_or_stop(
                        trainer, f"metrics at step {trainer.global_step}", may_stop=module.device_mesh is None
                    ),
                )
            )
        return torch.cat(made)

    def _clips(self, audio: Tensor, mask: Tensor, like: AudioBatch) -> Clips:
        """Creates clips with the labels and texts of the held-out ones, taken in turn."""
        places = [i % len(like) for i in range(len(audio))]
        labels = [None] * len(like) if like.label is None else [self._class(i) for i in like.label.tolist()]
        return Clips(
            audio,
            mask,
            [f"{like.keys[place]}_{i}" for i, place in enumerate(places)],
            [labels[place] for place in places],
            [like.texts[place] for place in places] if like.texts else (),
        )

    def _class(self, number: int) -> str | None:
        return self.subject.classes[number] if number >= 0 else None

    def _log(self, trainer: L.Trainer, audio: Tensor) -> None:
        assert self._real is not None
        mask = torch.ones(len(audio), 1, audio.shape[2], dtype=torch.bool)
        figures: dict[str, Figure] = {}
        for metric in self.metrics.values():
            metric.forget_generated()
            metric.update(self._clips(audio, mask, self._real), "generated")
            figures |= metric.compute()
        values: dict[str, float] = {}
        for name, figure in figures.items():
            if math.isnan(figure.value):
                if figure.note:
                    rank_zero_warn(f"metrics/{name} could not be measured: {figure.note}")
                continue
            values[f"metrics/{name}"] = figure.value
            if figure.interval is not None:
                values |= {f"metrics/{name}_low": figure.interval[0], f"metrics/{name}_high": figure.interval[1]}
        if values:
            log_metrics(trainer, values)
