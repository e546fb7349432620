"""One thread that writes while training goes on."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Of one write.

    Args:
        seconds: it took.
        error: why it failed; None where it did not.
    """

    seconds: float
    error: Exception | None


class BackgroundWriter:
    """Runs one job at a time in a thread of its own. The interpreter does not exit before it is done."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], object]) -> None:
        """Runs ``job`` in the background; the one before it must have been waited for, and its outcome taken."""
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
        """Until no job runs."""
        if self._thread is not None:
            self._thread.join()

    def take_outcome(self) -> Outcome | None:
        """Of the last job, once; None while it runs, or where there is none that was not taken."""
        if self.busy:
            return None
        outcome, self._outcome = self._outcome, None
        return outcome
