"""Handling of the signals that stop a run. Their handlers only set a flag, and child processes never receive them.

Saving inside a handler, as is often done, makes ranks hang, because each is interrupted at a different point. Slurm
sends signals to all processes of a task, so DataLoader workers, for example, would be killed before anything is saved.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

#: signals sent by Slurm on preemption and, on request, before the time limit; SIGHUP is sent when a terminal is closed;
#: Windows has only SIGTERM
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
STOP_FILE = (
    "AUDIO_DIFFUSION_STOP_FILE"  # environment variable: path of the file by which slurm/train.sh requests a stop
)
#: signal on which a worker prints its stack, see callbacks/cluster/heartbeat.py; None on Windows
STUCK_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)

_SIGHUP: int | None = getattr(signal, "SIGHUP", None)

_received: list[int] = []
_terminals: list[int] = []  # of standard output and standard error, those that are one


def received() -> int | None:
    """Returns the first stop signal that this process received, or None."""
    return _received[0] if _received else None


def listen() -> None:
    """Installs handlers that record stop signals and do nothing else, whatever their number.

    If SIGHUP is ignored, as under nohup, it stays so: the user wants the run to continue when the terminal closes.
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
    """Records the signal and redirects output from the closed terminal, as printing to it would raise an error."""
    _remember(signum, frame)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in _terminals:
        os.dup2(nowhere, fd)
    os.close(nowhere)


@contextlib.contextmanager
def listening(announce: bool) -> Iterator[None]:
    """Records stop signals, and the first Ctrl-C, inside the ``with`` block; a second Ctrl-C kills the process at once.

    Args:
        announce: whether to print a message at the first Ctrl-C (a terminal interrupts all ranks; one message is
            enough).
    """

    def first_interrupt(signum: int, frame: Any) -> None:
        _remember(signum, frame)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if announce:  # print could fail, because the handler may have interrupted one
            os.write(2, b"\nCtrl-C: saving and leaving at the next step; once more ends it at once, without saving\n")

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, *STOP_SIGNALS)}
    listen()
    if before[signal.SIGINT] is not signal.SIG_IGN:  # it is ignored in a program in the background
        signal.signal(signal.SIGINT, first_interrupt)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


@contextlib.contextmanager
def shielded(tracked: bool = False) -> Iterator[None]:
    """Blocks the signals for processes started inside the ``with`` block: fork and exec inherit the signal mask.

    Args:
        tracked: whether processes are started by spawn or forkserver.
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
    """Makes this process, a child started by ``multiprocessing``, exit as soon as its parent has ended for any reason.

    A child that is shielded from signals, or started by a fork server, would otherwise outlive its parent.
    """
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_outlast, args=(parent,), daemon=True, name="ends with its parent").start()


def _outlast(parent: Any) -> None:
    parent.join()
    os._exit(1)
