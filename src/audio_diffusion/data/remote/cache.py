"""A bounded cache folder of fetched data, checked when read and shared by all processes of a machine."""

import contextlib
import hashlib
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from audio_diffusion.checkpoints.exclusive import lock_file
from audio_diffusion.data.remote.address import RemoteError

log = logging.getLogger(__name__)

_BLOCK = 1 << 18
_FOOTER = struct.Struct("<QI4s")  # length of the data, checksum of the table of checksums, magic bytes
_MARK = b"ADC1"
_STALE_S = 60.0
_KEPT = 0.9  # fraction of max_bytes that is kept by an eviction


class Cache:
    """A folder of entries, from which the least recently used are evicted.

    An entry consists of its data, the CRC-32 of every 256 KiB, and a footer; it is written under a temporary name and
    renamed. The checksums detect damage on the disk; the store checks fetched data before it is stored. The folder is
    created at the first use.

    Args:
        folder: folder of the cache. It should be on a local disk, since it needs file locks.
        max_bytes: maximum size of all entries. The current size is kept in a file; the folder is listed only when it
            exceeds the maximum.
    """

    def __init__(self, folder: str, max_bytes: int):
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.damaged = self.evicted = 0
        self._ready = self._warned = False

    def path(self, key: str) -> Path:
        """Returns the path of the entry of a key."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name[2:40]

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Returns bytes [start, stop) of an entry (fewer if it is shorter); None if it is absent or damaged."""
        path = self.path(key)
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        try:
            data = _read_entry(file, start, stop)
            os.utime(file.fileno() if os.utime in os.supports_fd else path)  # marks it as used now
            return data
        except ValueError as error:
            log.warning("cache: %s in %s; it is fetched again", error, path)
            self.damaged += 1
            self.drop(key)
            return None
        except OSError as error:
            self._warn(error)
            return None
        finally:
            file.close()

    def put(self, key: str, data: bytes) -> None:
        """Stores an entry. If that fails (a full disk), warns once and continues without."""
        if len(data) > self.max_bytes:
            return
        try:
            with self.writer(key) as writer:
                writer.write(data)
                writer.commit()
        except OSError as error:
            self._warn(error)

    def drop(self, key: str) -> None:
        """Removes an entry."""
        with contextlib.suppress(OSError):
            self.path(key).unlink()

    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator["Writer"]:
        """Yields a writer for a new entry, which is kept if ``commit`` is called and removed otherwise.

        Raises:
            OSError: if the folder cannot be written.
        """
        self._prepare()
        path = self.path(key)
        path.parent.mkdir(exist_ok=True)
        temporary = self.folder / "partial" / f"{path.name}.{os.getpid()}.{threading.get_ident()}"
        try:
            with open(temporary, "wb") as file:
                lock_file(file)  # shows other processes that its writer is alive
                writer = Writer(file)
                yield writer
            if writer.committed:
                temporary.replace(path)
                self._add(writer.length)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    @contextlib.contextmanager
    def lock(self, key: str, stopped: threading.Event) -> Iterator[None]:
        """Holds a lock for a key among all processes; waits for it until ``stopped`` is set.

        Raises:
            RemoteError: if stopped while waiting.
        """
        self._prepare()
        with open(self.folder / "partial" / f"{self.path(key).name}.lock", "wb") as file:
            while True:
                try:
                    lock_file(file, wait=False)
                    break
                except BlockingIOError:
                    if stopped.wait(0.05):
                        raise RemoteError("stopped while another process fetched it", "stopped") from None
            yield

    def _prepare(self) -> None:
        """Creates the folder, and removes temporary files of writers that were killed."""
        if self._ready:
            return
        partial = self.folder / "partial"
        partial.mkdir(parents=True, exist_ok=True)
        for path in partial.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    with open(path, "rb") as file:
                        lock_file(file, wait=False)
                        path.unlink()
        self._ready = True

    def _add(self, num_bytes: int) -> None:
        """Adds a new entry to the current size, and evicts entries if it exceeds the maximum."""
        with open(self.folder / "size", "a+b") as file:
            lock_file(file)
            file.seek(0)
            text = file.read()
            # without a recorded size, as after a crash, the folder is listed
            total = int(text) + num_bytes if text.isdigit() else self.max_bytes + 1
            if total > self.max_bytes:
                total = self._evict()
            file.truncate(0)
            file.write(b"%d" % total)

    def _evict(self) -> int:
        """Removes the least recently used entries if the maximum is exceeded; returns the remaining size in bytes."""
        entries = []
        for folder in os.scandir(self.folder):
            if len(folder.name) == 2:
                for entry in os.scandir(folder.path):
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        entries.append((stat.st_mtime_ns, stat.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        if total <= self.max_bytes:
            return total
        for _, size, path in sorted(entries):
            if total <= _KEPT * self.max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
            self.evicted += 1
        return total

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("cache: %s cannot be used (%s); continuing without it, which is slower", self.folder, error)
            self._warned = True


class Writer:
    """Writes the data of an entry, with checksums."""

    def __init__(self, file: BinaryIO):
        self._file, self._crc, self._table = file, 0, bytearray()
        self.length, self.committed = 0, False

    def write(self, data: bytes) -> None:
        """Appends data."""
        view = memoryview(data)
        while len(view):
            part = view[: _BLOCK - self.length % _BLOCK]
            self._crc = zlib.crc32(part, self._crc)
            self.length += len(part)
            if self.length % _BLOCK == 0:
                self._end_block()
            view = view[len(part) :]
        self._file.write(data)

    def _end_block(self) -> None:
        self._table += self._crc.to_bytes(4, "little")
        self._crc = 0

    def commit(self) -> None:
        """Marks the data as complete and correct."""
        if self.length % _BLOCK:
            self._end_block()
        self._file.write(self._table + _FOOTER.pack(self.length, zlib.crc32(self._table), _MARK))
        self._file.flush()
        self.committed = True


def _read_entry(file: FileIO, start: int, stop: int | None) -> bytes:
    """Returns bytes [start, stop) of an open entry; reads only the blocks that contain them.

    Raises:
        ValueError: if the entry is damaged there.
    """
    num_bytes = os.fstat(file.fileno()).st_size
    num_blocks = -(-(num_bytes - _FOOTER.size) // (_BLOCK + 4))
    length = num_bytes - _FOOTER.size - 4 * num_blocks
    if length < 0:
        raise ValueError("an incomplete entry")
    file.seek(length)
    tail = file.readall()
    table = tail[: 4 * num_blocks]
    if tail[4 * num_blocks :] != _FOOTER.pack(length, zlib.crc32(table), _MARK):
        raise ValueError("a damaged footer")
    stop = length if stop is None else min(stop, length)
    first, begin = start // _BLOCK, start // _BLOCK * _BLOCK
    wanted = min(-(-stop // _BLOCK) * _BLOCK, length) - begin
    file.seek(begin)
    data = file.read(max(wanted, 0))
    view = memoryview(data)
    for block, at in enumerate(range(0, wanted, _BLOCK), first):
        if zlib.crc32(view[at : at + _BLOCK]) != int.from_bytes(table[4 * block : 4 * block + 4], "little"):
            raise ValueError("damaged data")
    return data if (begin, wanted) == (start, stop - start) else data[start - begin : stop - begin]
