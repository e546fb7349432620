"""Watchdog that ends a stuck run and prints its stacks, so that the run can be restarted."""

import faulthandler
import multiprocessing
import os
import socket
import sys
import threading
import time
from typing import Any

import lightning as L

from audio_diffusion.checkpoints import signals

STUCK = 70  # the exit status
_SECONDS_FOR_OTHERS = 5.0  # time for other ranks to print their stacks: Slurm ends them when one rank exits


class Heartbeat(L.Callback):
    """Ends the run if it makes no progress: no step, validation batch or network call of sampling for some minutes.

    Reasons for that are a rank that died silently, a read that never returns, or a collective that waits forever. Every
    rank then prints the stacks of all its threads and of its DataLoader workers, and exits with status 70.

    Args:
        minutes: time without progress; generous, as it includes start-up and the writing of large checkpoints, but not
            compiling.

    Raises:
        ValueError: if ``minutes`` is not positive.
    """

    def __init__(self, minutes: float = 30.0):
        if minutes <= 0:
            raise ValueError(f"minutes: expected more than 0, got {minutes:g}")
        self.seconds = 60 * minutes
        self._ended, self._beat_at, self._doing = threading.Event(), 0.0, "starting"
        self._paused = False
        self._thread: threading.Thread | None = None

    def beat(self, doing: str) -> None:
        """Records progress; the report names ``doing`` as the current work if no further progress follows."""
        self._beat_at, self._doing = time.monotonic(), doing

    def pause(self, doing: str) -> None:
        """Suspends the watch until ``resume``, during work that may take any time."""
        self._doing, self._paused = doing, True

    def resume(self, doing: str) -> None:
        """Restarts the watch after a pause."""
        self.beat(doing)
        self._paused = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or self._thread is not None:
            return
        self.beat("starting")
        self._thread = threading.Thread(target=self._watch, args=(trainer.global_rank,), daemon=True, name="heartbeat")
        with signals.shielded():
            self._thread.start()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.beat(f"at step {trainer.global_step}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.beat(f"after step {trainer.global_step}")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.beat(f"validating at step {trainer.global_step}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.beat(f"after the validation at step {trainer.global_step}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self, rank: int) -> None:
        every, woke_at = min(self.seconds / 10, 10.0), time.monotonic()
        while not self._ended.wait(every):
            if time.monotonic() - woke_at > every + self.seconds / 2:
                self.beat(self._doing)  # this thread did not run either: the job was suspended
            woke_at = time.monotonic()
            if self._paused:
                self.beat(self._doing)
            # C code does it if this thread cannot run because another one holds the interpreter lock
            faulthandler.dump_traceback_later(2 * self.seconds, exit=True)
            still = time.monotonic() - self._beat_at
            if still > self.seconds:
                self._give_up(rank, still)

    def _give_up(self, rank: int, still: float) -> None:
        print(
            f"\nrank {rank} (process {os.getpid()} on {socket.gethostname()}) is stuck: no progress for "
            f"{still / 60:.1f} minutes, last {self._doing} (callbacks.heartbeat.minutes={self.seconds / 60:g}). "
            "Its stacks:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        if signals.STUCK_SIGNAL is not None:
            for worker in multiprocessing.active_children():
                print(f"\nStacks of its worker, process {worker.pid}:", file=sys.stderr, flush=True)
                os.kill(worker.pid or 0, signals.STUCK_SIGNAL)
                time.sleep(0.2)
        time.sleep(_SECONDS_FOR_OTHERS)
        os._exit(STUCK)


def beat(trainer: L.Trainer, doing: str) -> None:
    """Sends a heartbeat to the run's watchdog, from long work between two steps."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Heartbeat):
            callback.beat(doing)
