"""Stops a run on request of the cluster or the user: all ranks stop at the same step and save once."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from audio_diffusion.callbacks.cluster.heartbeat import beat
from audio_diffusion.checkpoints import signals
from audio_diffusion.diffusion.checks import check_at_least_one

_BY_FILE = 1000  # code for a stop request by the file; no signal has this number
_SECONDS_BETWEEN_LOOKS = 1.0  # interval between checks for the file, which may be on a slow, shared file system


class Interrupted(Exception):
    """Raised to abort work between two steps after a stop request."""


class StopWhenAsked(L.Callback):
    """Ends training cleanly when any rank has received a signal, or a stop file exists.

    slurm/train.sh creates the file when Slurm announces the end of the job. Signals (SIGTERM, SIGUSR1, SIGHUP, the
    first Ctrl-C) only set a flag. After optimizer steps and validation batches the ranks exchange their flags, so all
    stop at the same step. The run is saved as at any end of training; no validation or sampling is started. The file
    ``<file>.done`` then makes the batch script requeue the job.

    Args:
        file: path of the stop file; None for the environment variable AUDIO_DIFFUSION_STOP_FILE. Without either, only
            signals stop the run.
        every_n_steps: optimizer steps between checks with several ranks, as each check is an all-reduce of one number.
            A single rank checks after every step. All check after each validation batch.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, file: str | None = None, every_n_steps: int = 5):
        check_at_least_one(every_n_steps=every_n_steps)
        name = file or os.environ.get(signals.STOP_FILE)
        self.file, self.every_n_steps = Path(name) if name else None, every_n_steps
        self._request = 0  # the request known to all ranks: _BY_FILE, the signal's number, or 0 for none
        self._seen_step, self._looked_at, self._file_is_there = -1, -_SECONDS_BETWEEN_LOOKS, False
        self._listening = contextlib.ExitStack()

    @property
    def status(self) -> int:
        """Exit status of the program: 128 + the signal's number, or 0 without a signal or if a batch script waits for
        ``<file>.done``."""
        if self._request in (0, _BY_FILE) or (self.file is not None and self._request != signal.SIGINT):
            return 0
        return 128 + self._request

    def request(self, trainer: L.Trainer) -> int:
        """Returns the stop request that this rank knows of, or 0; only rank 0 checks for the file."""
        if self._request or signals.received():
            return self._request or signals.received() or 0
        if self.file is None or not trainer.is_global_zero:
            return 0
        if not self._file_is_there and time.monotonic() - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._looked_at, self._file_is_there = time.monotonic(), self.file.exists()
        return _BY_FILE if self._file_is_there else 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Lightning's SIGTERM handler broadcasts wherever it interrupts this rank, and the other ranks may not take part
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listening.enter_context(signals.listening(announce=trainer.is_global_zero))
        self._seen_step = trainer.global_step
        self._agree(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:
            return  # gradients are being accumulated: no optimizer step was taken
        self._seen_step = trainer.global_step
        if trainer.world_size == 1 or trainer.global_step % self.every_n_steps == 0:
            self._agree(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._agree(trainer)
        if self._request:
            raise StopIteration  # ends the loop over the batches

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listening.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._listening.close()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        unfinished = trainer.global_step < trainer.max_steps
        if self._request and unfinished and self.file is not None and trainer.is_global_zero:
            Path(f"{self.file}.done").touch()

    def _agree(self, trainer: L.Trainer) -> None:
        request = self.request(trainer)
        if trainer.world_size > 1:
            mine = torch.tensor(request, device=trainer.strategy.root_device)
            request = int(trainer.strategy.reduce(mine, reduce_op="max"))
        if request and not self._request:
            self._request = request
            what = f"{self.file} exists" if request == _BY_FILE else f"{signal.Signals(request).name} received"
            rank_zero_info(f"{what}: stopping at step {trainer.global_step}")
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # otherwise Lightning would validate once more


def stop_of(trainer: L.Trainer) -> StopWhenAsked | None:
    """Returns the trainer's ``StopWhenAsked`` callback, or None."""
    return next((c for c in trainer.callbacks if isinstance(c, StopWhenAsked)), None)  # type: ignore[attr-defined]


def is_stopping(trainer: L.Trainer) -> bool:
    """Whether the ranks have agreed to stop."""
    stop = stop_of(trainer)
    return stop is not None and stop._request != 0


def beat_or_stop(trainer: L.Trainer, doing: str, may_stop: bool = True) -> None:
    """Sends a heartbeat and obeys a stop request; called during long work between two steps, such as sampling.

    Args:
        trainer: the run's trainer.
        doing: description of the work for the heartbeat's report.
        may_stop: False if this rank cannot stop alone, since its network is sharded over ranks.

    Raises:
        Interrupted: if this rank knows of a stop request.
    """
    beat(trainer, doing)
    stop = stop_of(trainer)
    if may_stop and stop is not None and stop.request(trainer):
        raise Interrupted
