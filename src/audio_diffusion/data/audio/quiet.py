"""Discards what decoders written in C print to stderr."""

import contextlib
import ctypes
import os
import platform
import threading
from functools import cache


@cache
def _stderr_of_c() -> tuple[ctypes.c_void_p, int, int] | None:
    """Returns the C library's variable stderr, its value, and a stream that discards everything; None if it cannot be
    set."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    nowhere = library.fopen(os.devnull.encode(), b"w")
    variable = ctypes.c_void_p.in_dll(library, "stderr")
    return (variable, variable.value, nowhere) if nowhere and variable.value else None


class Quiet(contextlib.AbstractContextManager):  # type: ignore[type-arg]
    """Context manager that discards what C code prints to stderr; Python's own stderr is not affected."""

    _lock, _entered = threading.Lock(), 0

    def __enter__(self) -> None:
        if (found := _stderr_of_c()) is not None:
            with self._lock:
                Quiet._entered += 1
                found[0].value = found[2]

    def __exit__(self, *error: object) -> None:
        if (found := _stderr_of_c()) is not None:
            with self._lock:
                Quiet._entered -= 1
                if not Quiet._entered:
                    found[0].value = found[1]
