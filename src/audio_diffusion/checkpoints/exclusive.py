"""Exclusive lock on an open file, among all processes of a machine."""

import sys
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def lock_file(file: IO[Any], wait: bool = True) -> None:
    """Locks an open file until it is closed or the process ends.

    Args:
        file: the open file.
        wait: whether to wait until another process releases the lock.

    Raises:
        BlockingIOError: if another process holds it and ``wait`` is off.
    """
    if sys.platform == "win32":
        at = file.tell()
        file.seek(1 << 30)  # a byte that nobody reads or writes: there a lock keeps others from the locked bytes
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError("another process holds it") from error
        finally:
            file.seek(at)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
