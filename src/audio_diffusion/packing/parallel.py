"""Work spread over processes, its results in order, a bounded number of them waiting; and how far it is."""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch
from tqdm import tqdm

from audio_diffusion.checkpoints import signals

A = TypeVar("A")
B = TypeVar("B")

_QUIET_S = 30.0  # between two lines of progress in a file


def ordered(function: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """The results of a function in the order of the items, at most two for each process waiting to be taken.

    One worker is this process itself.

    Raises:
        ValueError: if a process was killed.
    """
    if num_workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_begin)
    try:
        yield from in_order(lambda item: pool.submit(function, item), items, 2 * num_workers)
    except BrokenProcessPool as error:
        raise ValueError(
            f"num_workers: one of {num_workers} processes was killed, perhaps for want of memory; take fewer. "
            "The same command goes on from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(submit: Callable[[A], Future[B]], items: Iterable[A], limit: int) -> Iterator[B]:
    """Yields the results of submitted items in order, with at most ``limit`` of them submitted at a time."""
    waiting = deque[Future[B]]()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin() -> None:
    """A worker leaves Ctrl-C to its parent, computes in one thread, and does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    signals.end_with_parent()


class Progress:
    """How far the work is: files, hours, how many times faster than real time, time left. In a terminal a bar,
    elsewhere a line now and then. To be called with what is done; the first call after a restart may say that much is
    done already.

    Args:
        what: what is done, in one word.
        unit: what is counted, one of them.
    """

    def __init__(self, what: str, unit: str = "file"):
        self.what, self.unit = what, unit
        self._start: tuple[float, float] | None = None  # time and hours at the first call
        self._said, self._line = 0.0, ""
        self._bar = tqdm(file=sys.stdout, bar_format="{desc}", leave=True) if sys.stdout.isatty() else None

    def __call__(self, count: int, of_count: int, seconds: float, of_seconds: float) -> None:
        """Tells of the count and the seconds of audio that are done, of all."""
        hours, of_hours, now = seconds / 3600, of_seconds / 3600, time.monotonic()
        if self._start is None:
            self._start, self._said = (now, hours), now
        elapsed, done = now - self._start[0], hours - self._start[1]
        speed = done / elapsed if elapsed > 0 else 0.0  # hours a second
        is_over = count == of_count or speed == 0
        left = f"in {_clock(elapsed)}" if is_over else f"{_clock((of_hours - hours) / speed)} left"
        rate = f"{3600 * speed:.0f} x real time, " if speed else ""
        self._line = (
            f"{self.what}: {count}/{of_count} {self.unit}{'s' * (of_count != 1)}, {hours:.2f}/{of_hours:.2f} h, "
            f"{rate}{left}"
        )
        if self._bar is not None:
            self._bar.set_description_str(self._line, refresh=now - self._said > 0.1)
        if now - self._said > (0.1 if self._bar is not None else _QUIET_S):
            self._said = now
            if self._bar is None:
                print(self._line, flush=True)

    def close(self) -> None:
        """Says how it ended."""
        if self._bar is not None:
            self._bar.set_description_str(self._line)
            self._bar.close()
        elif self._line:
            print(self._line, flush=True)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
