"""What a run does beside training may fail: that is a warning, and training goes on, on all ranks alike."""

import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

import lightning as L

from audio_diffusion.callbacks.loggers import log_metrics

T = TypeVar("T")


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
        """
        result = self.alone(work)
        all_well = result is not None
        if trainer.world_size > 1:
            all_well = trainer.strategy.reduce_boolean_decision(all_well, all=True)
        if all_well:
            return result
        self.failures += 1
        log_metrics(trainer, {f"{self.what}/failures": self.failures})
        return None

    def alone(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, or None where it fails; the ranks agree on nothing."""
        try:
            return work()
        except Exception:
            warnings.warn(f"{self.what} failed; training goes on without.\n{traceback.format_exc()}", stacklevel=3)
            return None
