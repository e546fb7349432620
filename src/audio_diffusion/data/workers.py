"""DataLoader workers that outlive the signals of a cluster, and end with the process that started them."""

import atexit
import faulthandler
import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from audio_diffusion import signals


class ShieldedLoader(DataLoader):
    """A DataLoader whose workers ignore SIGTERM, SIGUSR1 and Ctrl-C: the training process decides when they end."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.num_workers:
            return super().__iter__()
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # runs before multiprocessing's own, which would wait for a worker that is stuck
        start = getattr(self.multiprocessing_context, "get_start_method", multiprocessing.get_start_method)()
        with signals.shielded(tracked=start != "fork"):
            batches = super().__iter__()
        for worker in getattr(batches, "_workers", ()):
            worker.terminate = worker.kill  # one that has not begun yet when all is over ignores SIGTERM already
        return batches


def begin_worker(worker_id: int) -> None:
    """The first thing a worker does: ignores the signals for good, and prints its stacks when it is asked to."""
    for signum in (signal.SIGINT, *signals.STOP_SIGNALS):
        signal.signal(signum, signal.SIG_IGN)
    faulthandler.register(signals.STUCK_SIGNAL)


def _end_workers() -> None:
    """Kills workers that did not end when they were told to, as those that wait for a read that never returns."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.join(1)
            child.kill()
