"""Measures throughput: seconds of audio trained per second, and the fraction of time spent waiting for data."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from audio_diffusion.callbacks.loggers import log_metrics
from audio_diffusion.diffusion.checks import check_at_least_one

_WARN_PERCENT = 50.0


class Throughput(L.Callback):
    """Logs the throughput since the last row, without validation and sampling, every ``every_n_steps`` optimizer steps.

    It warns once if training spends most of the time waiting for data.

    Args:
        sample_rate: Hz.
        every_n_steps: optimizer steps between rows.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, sample_rate: int, every_n_steps: int = 20):
        check_at_least_one(every_n_steps=every_n_steps)
        self.sample_rate, self.every_n_steps = sample_rate, every_n_steps
        self._waited = self._worked = self._audio_s = 0.0
        self._logged_at, self._is_first, self._warned = -1, True, False
        self._batch_ended = self._batch_started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch_ended = time.perf_counter()
        self._logged_at = trainer.global_step  # this step was logged before the restart

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch_ended = time.perf_counter()  # validation does not count as waiting

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch_started = time.perf_counter()
        self._waited += self._batch_started - self._batch_ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._worked += now - self._batch_started
        self._batch_ended = now
        self._audio_s += len(batch) * batch.audio.shape[-1] / self.sample_rate * trainer.world_size
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._logged_at and step > 0:
            self._log(trainer, step)

    def _log(self, trainer: L.Trainer, step: int) -> None:
        seconds = self._waited + self._worked
        metrics = {
            "speed/audio_seconds_per_second": self._audio_s / seconds,
            "speed/data_wait_percent": 100 * self._waited / seconds,
        }
        if not self._is_first:
            metrics["speed/steps_per_second"] = (step - self._logged_at) / seconds
        if torch.cuda.is_available():
            metrics["speed/peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        log_metrics(trainer, metrics)
        waited = metrics["speed/data_wait_percent"]
        if waited > _WARN_PERCENT and not self._is_first and not self._warned:  # the first row includes the start
            self._warned = True
            rank_zero_warn(
                f"training waits for data {waited:.0f} % of the time (steps {self._logged_at} to {step}): give it more "
                "data.num_workers, faster storage (of URLs data.store.cache_dir), or shards of cheaper audio (pcm16)"
            )
        self._waited = self._worked = self._audio_s = 0.0
        self._logged_at, self._is_first, self._batch_ended = step, False, time.perf_counter()
