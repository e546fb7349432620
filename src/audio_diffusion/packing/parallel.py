"""Distributes work over processes, with results in order, and reports progress."""

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

_QUIET_S = 30.0  # seconds between two lines of progress in a log file


def ordered(function: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """Yields the results of a function in the order of the items, with at most two items submitted per process. With
    one worker, this process does the work.

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
            f"num_workers: one of {num_workers} processes was killed, perhaps because memory ran out; use fewer. "
            "Repeat the command to continue from here"
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
    """Initialises a worker process: it ignores Ctrl-C, computes in one thread, and exits with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    signals.end_with_parent()


class Progress:
    """Shows progress: files, hours, speed relative to real time, and remaining time; in a terminal as a bar, elsewhere
    as an occasional line. The first call may report work that an earlier run has finished.

    Args:
        what: the current stage, in one word.
        unit: singular noun for the counted items.
    """

    def __init__(self, what: str, unit: str = "file"):
        self.what, self.unit = what, unit
        self._start: tuple[float, float] | None = None  # time and hours at the first call
        self._said, self._line = 0.0, ""
        self._bar = tqdm(file=sys.stdout, bar_format="{desc}", leave=True) if sys.stdout.isatty() else None

    def __call__(self, count: int, of_count: int, seconds: float, of_seconds: float) -> None:
        """Updates the number of items and the seconds of audio that are done, out of all."""
        hours, of_hours, now = seconds / 3600, of_seconds / 3600, time.monotonic()
        if self._start is None:
            self._start, self._said = (now, hours), now
        elapsed, done = now - self._start[0], hours - self._start[1]
        speed = done / elapsed if elapsed > 0 else 0.0  # hours per second
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
        """Prints the final state."""
        if self._bar is not None:
            self._bar.set_description_str(self._line)
            self._bar.close()
        elif self._line:
            print(self._line, flush=True)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
