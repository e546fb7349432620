"""Signals that ask a run to stop. They set a flag and do nothing else, and never reach what the run has started.

Saving inside a handler, as is often done, hangs ranks: each is interrupted somewhere else. And Slurm's signals go to
everything a task has started: DataLoader workers, for one, would die of them before anything is saved.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

#: Slurm's, of preemption and, where asked for, of the time limit; SIGHUP is a terminal that was closed. Windows has
#: only SIGTERM
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
STOP_FILE = "AUDIO_DIFFUSION_STOP_FILE"  # names, in the environment, the file that slurm/train.sh asks with
#: makes a worker print its stack, see callbacks/cluster/heartbeat.py; None on Windows
STUCK_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)

_SIGHUP: int | None = getattr(signal, "SIGHUP", None)

_received: list[int] = []
_terminals: list[int] = []  # of standard output and standard error, those that are one


def received() -> int | None:
    """The first signal that asked this process to stop."""
    return _received[0] if _received else None


def listen() -> None:
    """From here on the stop signals are remembered and do nothing else, however many come.

    SIGHUP stays ignored where it is, as under nohup: that is how one says that a closed terminal is to end nothing.
    """
    _terminals[:] = [fd for fd in (1, 2) if _is_terminal(fd)]
    for signum in STOP_SIGNALS:
        if signum != _SIGHUP:
            signal.signal(signum, _remember)
        elif signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _hang_up)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _remember(signum: int, frame: Any) -> None:
    _received.append(signum)


def _hang_up(signum: int, frame: Any) -> None:
    """Remembers it, and lets go of the closed terminal: a print to it would raise an error before all is saved."""
    _remember(signum, frame)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in _terminals:
        os.dup2(nowhere, fd)
    os.close(nowhere)


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
    if sys.platform == "win32" or not hasattr(signal, "pthread_sigmask"):
        yield  # Windows sends a process no signals but Ctrl-C
        return
    signals = (signal.SIGINT, *STOP_SIGNALS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        if tracked:  # started first, since starting it unblocks SIGINT and SIGTERM here
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Ends this process, a child by ``multiprocessing``, as soon as the process that started it is gone, however that
    ended. A child that is shielded from signals, or started by a fork server, would outlive it."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_outlast, args=(parent,), daemon=True, name="ends with its parent").start()


def _outlast(parent: Any) -> None:
    parent.join()
    os._exit(1)
