"""Turns failures of optional work, such as sampling, into warnings on all ranks, so that training continues."""

import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

import lightning as L
import torch

from audio_diffusion.callbacks.cluster.preemption import Interrupted
from audio_diffusion.callbacks.loggers import log_metrics

T = TypeVar("T")
_WELL, _FAILED, _INTERRUPTED = 0, 1, 2  # ordered, as the ranks take the maximum


class FailureTolerance:
    """Runs optional work. A failure does not end the training; it causes a warning with its traceback, and is counted
    in the metric ``<what>/failures``.

    Args:
        what: the name of the work in warnings and in the metric.
    """

    def __init__(self, what: str):
        self.what, self.failures = what, 0

    def on_all_ranks(self, trainer: L.Trainer, work: Callable[[], T]) -> T | None:
        """Runs ``work`` on every rank; all ranks must call this.

        The ranks agree on the outcome afterwards, before they use the result together, so that none waits for one that
        failed. ``work`` itself must not wait for other ranks. A network sharded over ranks (trainer=fsdp) does wait;
        there, a failure on one rank ends in the collective's time-out.

        Returns:
            What ``work`` returns; None on all ranks if it fails on any.

        Raises:
            Interrupted: on all ranks, if ``work`` raised it on any because of a request to stop.
        """
        result, outcome = None, _WELL
        try:
            result = self.on_this_rank(work)
            outcome = _FAILED if result is None else _WELL
        except Interrupted:
            outcome = _INTERRUPTED
        if trainer.world_size > 1:
            mine = torch.tensor(outcome, device=trainer.strategy.root_device)
            outcome = int(trainer.strategy.reduce(mine, reduce_op="max"))
        if outcome == _INTERRUPTED:
            raise Interrupted
        if outcome == _WELL:
            return result
        self.failures += 1
        log_metrics(trainer, {f"{self.what}/failures": self.failures})
        return None

    def on_this_rank(self, work: Callable[[], T]) -> T | None:
        """Runs ``work`` on this rank alone, and returns its result, or None if it fails."""
        try:
            return work()
        except Interrupted:
            raise
        except Exception:
            warnings.warn(f"{self.what} failed; training continues without it.\n{traceback.format_exc()}", stacklevel=3)
            return None
