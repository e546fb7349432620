"""Ctrl-C in sample.py and evaluate.py: what is finished is kept, one line says so, and the status is 130."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 128 + signal.SIGINT


def leave_at_once() -> None:
    """From here on Ctrl-C ends the program with a line: nothing has been made yet, or all is written."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored: a program in the background
        signal.signal(signal.SIGINT, _leave)


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"\ninterrupted\n")  # not print: the handler may have interrupted one
    os._exit(STATUS)


class CtrlC:
    """While it is entered, Ctrl-C raises KeyboardInterrupt, inside ``held`` only at its end.

    As the block is left, Ctrl-C is ignored, so that a second one does not lose what is written then; ``received`` says
    whether there was one.
    """

    def __init__(self) -> None:
        self.received, self._is_held = False, False

    def __enter__(self) -> "CtrlC":
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """An interruption is over here: ``received`` tells of it."""
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_IGN if self.received else self._before)
        return kind is KeyboardInterrupt

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        if not self._is_held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is done inside is done to its end."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.received:
            raise KeyboardInterrupt


def end(words: str) -> None:
    """Says what is kept and ends the program.

    Raises:
        SystemExit: always.
    """
    print(f"interrupted: {words}", file=sys.stderr)
    raise SystemExit(STATUS)
