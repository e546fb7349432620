"""Signals that ask a run to stop. They set a flag and do nothing else, and never reach what the run has started.

Saving inside a handler, as is often done, hangs ranks: each is interrupted somewhere else. And Slurm's signals go to
everything a task has started: DataLoader workers, for one, would die of them before anything is saved.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # Slurm's, of preemption and, where asked for, of the time limit
STOP_FILE = "AUDIO_DIFFUSION_STOP_FILE"  # names, in the environment, the file that slurm/train.sh asks with
STUCK_SIGNAL = signal.SIGUSR2  # makes a worker print its stack, see callbacks/cluster/heartbeat.py

_received: list[int] = []


def received() -> int | None:
    """The first signal that asked this process to stop."""
    return _received[0] if _received else None


def listen() -> None:
    """From here on SIGTERM and SIGUSR1 are remembered and do nothing else, however many come."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, _remember)


def _remember(signum: int, frame: Any) -> None:
    _received.append(signum)


@contextlib.contextmanager
def listening(announce: bool) -> Iterator[None]:
    """Inside, ``listen``; the first Ctrl-C is remembered too, a second one ends the process at once, whatever it does.

    Args:
        announce: say so at the first one (a terminal interrupts all ranks: one is enough).
    """

    def first_interrupt(signum: int, frame: Any) -> None:
        _remember(signum, frame)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if announce:  # not print: the handler may have interrupted one
            os.write(2, b"\nCtrl-C: saving and leaving at the next step; once more ends it at once, without saving\n")

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, *STOP_SIGNALS)}
    listen()
    if before[signal.SIGINT] is not signal.SIG_IGN:  # as of a program in the background
        signal.signal(signal.SIGINT, first_interrupt)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


@contextlib.contextmanager
def shielded(tracked: bool = False) -> Iterator[None]:
    """What is started inside never sees the signals, from its first instant on: fork and exec keep the mask.

    Args:
        tracked: processes are started by spawn or forkserver.
    """
    signals = (signal.SIGINT, *STOP_SIGNALS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        if tracked:  # started first, since starting it unblocks SIGINT and SIGTERM here
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
