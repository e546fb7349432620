"""What a run does beside training may fail: that is a warning, and training goes on, on all ranks alike."""

import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

import lightning as L
import torch

from audio_diffusion.callbacks.cluster.preemption import Interrupted
from audio_diffusion.callbacks.loggers import log_metrics

T = TypeVar("T")
_WELL, _FAILED, _INTERRUPTED = 0, 1, 2  # the worst of all ranks counts


class Tolerated:
    """Runs work whose failure is not training's: warns with the traceback, counts it in ``<what>/failures``.

    Args:
        what: the work, as warnings and the metric call it.
    """

    def __init__(self, what: str):
        self.what, self.failures = what, 0

    def together(self, trainer: L.Trainer, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, or None on all ranks where it fails on any: called by all ranks.

        The ranks agree after it and before whatever they do together with its result, so that none waits for one that
        failed. Within ``work`` they must not wait for each other; networks sharded over ranks (trainer=fsdp) do, and
        there a failure of one rank alone is left to the time-out.

        Raises:
            Interrupted: on all ranks, where ``work`` raised it on any: the run was asked to stop.
        """
        result, outcome = None, _WELL
        try:
            result = self.alone(work)
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

    def alone(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, or None where it fails; the ranks agree on nothing."""
        try:
            return work()
        except Interrupted:
            raise
        except Exception:
            warnings.warn(f"{self.what} failed; training goes on without.\n{traceback.format_exc()}", stacklevel=3)
            return None
