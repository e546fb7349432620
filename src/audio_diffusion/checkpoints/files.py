"""Atomic file writes with content hashes: a file is either complete or absent.

A file is *staged* (written under a temporary name in its own folder, hashed on the way, synced) and then *published*
(renamed). TMPDIR is never used: a rename is atomic only within one file system.
"""

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """Expected size and hash of a file."""

    bytes: int
    sha256: str


class HashingFile:
    """A sequentially written file that hashes its content."""

    def __init__(self, raw: Any):
        self._raw, self._digest, self._bytes = raw, hashlib.sha256(), 0
        #: the error of a failed write; ``torch.save`` replaces it with an error that lacks the reason
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of ``data``, in several calls if needed: the system writes at most 2 GiB per call."""
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
        """Does nothing, as writes are not buffered."""

    @property
    def record(self) -> FileRecord:
        """Size and hash of the data written so far."""
        return FileRecord(self._bytes, self._digest.hexdigest())


def part_of(path: Path) -> Path:
    """Returns the temporary path of a file or folder that is not complete yet."""
    return path.with_name(f".{path.name}.part")


def stage(path: Path, fill: Callable[[HashingFile], Any]) -> FileRecord:
    """Writes ``path`` under its temporary name with ``fill(file)`` and syncs it; removes it if that fails.

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
    """Renames staged files, all in one folder, to their final names in order, and syncs the folder."""
    for path in paths:
        part_of(path).replace(path)
    sync_folder(paths[0].parent)


def sync_folder(folder: Path) -> None:
    """Syncs the names in a folder to disk; on Windows, where folders cannot be opened, this is left to the system."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def record_of(path: Path) -> FileRecord:
    """Returns the size and hash of a file, read in one pass and, if the system supports it, not from the page cache.

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


def blocks_of(path: Path) -> Iterator[bytes]:
    """Reads a file block by block."""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def sha256_of(blocks: Iterable[bytes]) -> str:
    """Hash of the concatenated blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _forget(file: BinaryIO) -> None:
    if hasattr(os, "posix_fadvise"):  # drops synced pages from the page cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_full(error: BaseException | None) -> bool:
    """Whether the disk or the user's quota is full; also recognises another rank's error, of which only the text is
    known."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, OSError) and (error.errno in codes or any(os.strerror(c) in str(error) for c in codes))


def room(folder: Path, needed_bytes: int) -> str:
    """Describes the free and the needed disk space for a folder."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.1f} MB are free in {folder}, {needed_bytes / 1e6:.1f} MB are needed"


def remove(path: Path) -> None:
    """Removes a file, or a folder with its content; does nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
