"""Files that are there whole or not at all, and whose content is known by its hash.

A file is *staged* (written under a temporary name in its own folder, hashed on the way, synced) and then *published*
(renamed). TMPDIR is never used: a rename is atomic only within one file system.
"""

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """What a file should hold."""

    bytes: int
    sha256: str


class HashingFile:
    """A file to write to from start to end, which hashes what passes."""

    def __init__(self, raw: Any):
        self._raw, self._digest, self._bytes = raw, hashlib.sha256(), 0
        #: why the file could not be written. ``torch.save`` turns it into an error that does not say so
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """All of ``data``: the system itself takes at most 2 GiB at a time."""
        view = memoryview(data).cast("B")
        size = len(view)
        self._digest.update(view)
        try:
            while view:
                view = view[self._raw.write(view) :]
        except OSError as error:
            self.error = error
            raise
        self._bytes += size
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def record(self) -> FileRecord:
        """Of what was written so far."""
        return FileRecord(self._bytes, self._digest.hexdigest())


def part_of(path: Path) -> Path:
    """Where a file, or a folder, is while it is not whole yet."""
    return path.with_name(f".{path.name}.part")


def stage(path: Path, fill: Callable[[HashingFile], Any]) -> FileRecord:
    """Writes ``path`` under its temporary name by ``fill(file)``, and syncs it; nothing is left where that fails.

    Raises:
        OSError: if it cannot be written.
    """
    part = part_of(path)
    with open(part, "wb", buffering=0) as raw:
        file = HashingFile(raw)
        try:
            fill(file)
            os.fsync(raw.fileno())
        except BaseException as error:
            part.unlink(missing_ok=True)
            if file.error is not None and error is not file.error:
                raise file.error from error
            raise
    return file.record


def publish(*paths: Path) -> None:
    """Gives staged files, all of one folder, their names, one after the other, and syncs the folder."""
    for path in paths:
        part_of(path).replace(path)
    sync_folder(paths[0].parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; on Windows, where folders cannot be opened, the file system does."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def record_of(path: Path) -> FileRecord:
    """What a file holds, in one pass; read from the disk rather than from memory where the system can be told so.

    Raises:
        OSError: if it cannot be read.
    """
    digest, size, block = hashlib.sha256(), 0, bytearray(_BLOCK)
    with open(path, "rb", buffering=0) as file:
        _forget(file)
        while count := file.readinto(block):  # type: ignore[attr-defined]
            digest.update(memoryview(block)[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


def _forget(file: BinaryIO) -> None:
    if hasattr(os, "posix_fadvise"):  # what is synced leaves the page cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_full(error: BaseException | None) -> bool:
    """Whether the disk, or the user's share of it, is full; also where an error of another rank is told in words."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, OSError) and (error.errno in codes or any(os.strerror(c) in str(error) for c in codes))


def room(folder: Path, needed_bytes: int) -> str:
    """How much room there is where a folder lies, beside what is needed."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.1f} MB are free in {folder}, {needed_bytes / 1e6:.1f} MB are needed"


def remove(path: Path) -> None:
    """A file, or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
