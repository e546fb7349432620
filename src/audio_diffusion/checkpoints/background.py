"""Background thread that writes checkpoints while training continues."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Result of one write.

    Args:
        seconds: duration of the write.
        error: the error of a failed write, else None.
    """

    seconds: float
    error: Exception | None


class BackgroundWriter:
    """Runs one job at a time in a separate thread. The interpreter does not exit before it is done."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], object]) -> None:
        """Runs ``job`` in the background; the previous job must be done and its outcome taken."""
        assert not self.busy
        assert self._outcome is None
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint-writer")
        self._thread.start()

    def _run(self, job: Callable[[], object]) -> None:
        start, error = time.perf_counter(), None
        try:
            job()
        except Exception as caught:
            error = caught
        self._outcome = Outcome(time.perf_counter() - start, error)

    def wait(self) -> None:
        """Waits until no job is running."""
        if self._thread is not None:
            self._thread.join()

    def take_outcome(self) -> Outcome | None:
        """Returns the outcome of the last job, once; None while a job runs or if the outcome was taken already."""
        if self.busy:
            return None
        outcome, self._outcome = self._outcome, None
        return outcome
