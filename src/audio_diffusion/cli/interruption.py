"""Handles Ctrl-C in sample.py and evaluate.py: finished results are kept, one line reports them, and the exit status is
130."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 128 + signal.SIGINT


def leave_at_once() -> None:
    """Makes Ctrl-C end the program at once with one line, while there are no results or all of them are written."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # it is ignored in a program in the background
        signal.signal(signal.SIGINT, _leave)


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"\ninterrupted\n")  # not print: the handler may have interrupted one
    os._exit(STATUS)


class CtrlC:
    """Context manager in which Ctrl-C raises KeyboardInterrupt; inside ``held`` it is raised at the end of that block.

    On exit Ctrl-C is ignored, so that a second one cannot interrupt the final writing. ``received`` is True after one.
    """

    def __init__(self) -> None:
        self.received, self._is_held = False, False

    def __enter__(self) -> "CtrlC":
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Suppresses the interruption, which ``received`` records."""
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_IGN if self.received else self._before)
        return kind is KeyboardInterrupt

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        if not self._is_held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context manager that delays Ctrl-C to the end of its block."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.received:
            raise KeyboardInterrupt


def end(words: str) -> None:
    """Prints what was kept and ends the program.

    Raises:
        SystemExit: always.
    """
    print(f"interrupted: {words}", file=sys.stderr)
    raise SystemExit(STATUS)
