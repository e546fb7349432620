"""What lies in an audio file: the stretches of it that libsndfile decodes right, and what is missing between them.

libsndfile reads a file by what its header promises. Where that is wrong (a length that was never written, two files in
one, a page that is gone), a file is described here as parts, each of which reads as a whole file of its own.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from os import fspath
from pathlib import Path
from typing import BinaryIO, NamedTuple

_BLOCK = 1 << 18  # bytes that are read at once


class Loss(NamedTuple):
    """What is missing: from where in the audio (-1.0: its end), how much (0.0: it cannot be known), both in seconds;
    why; and ``is_certain``, False where perhaps nothing is."""

    start_s: float
    seconds: float
    reason: str
    is_certain: bool = True


class Data:
    """Random access to a file that is a path, an open binary file or memory, through one cached block."""

    def __init__(self, file: str | bytes | Path | BinaryIO | memoryview | RawIOBase):
        self._memory = file if isinstance(file, memoryview) else None
        self._file: BinaryIO | RawIOBase | None = None
        self._owned = isinstance(file, str | bytes | Path)
        if isinstance(file, str | bytes | Path):
            self._file = open(fspath(file), "rb")  # noqa: SIM115
        elif not isinstance(file, memoryview):
            self._file = file
        self._start, self._cached = 0, b""
        if self._memory is not None:
            self.size = len(self._memory)
        else:
            assert self._file is not None
            self.size = self._file.seek(0, SEEK_END)

    def read(self, at: int, count: int) -> bytes:
        """At most ``count`` bytes from ``at`` on; fewer at the end, none before the beginning."""
        count = min(count, self.size - at)
        if at < 0 or count <= 0:
            return b""
        if self._memory is not None:
            return bytes(self._memory[at : at + count])
        offset = at - self._start
        if offset < 0 or offset + count > len(self._cached):
            assert self._file is not None
            self._file.seek(at)
            blocks, missing = [], max(count, min(_BLOCK, self.size - at))
            while missing and (block := self._file.read(missing)):
                blocks.append(block)
                missing -= len(block)
            self._start, self._cached, offset = at, b"".join(blocks), 0
        return self._cached[offset : offset + count]

    def find(self, needle: bytes, start: int, stop: int | None = None) -> int:
        """Where some bytes are found first from ``start`` on, before ``stop``; -1: nowhere."""
        stop = self.size if stop is None else min(stop, self.size)
        while start < stop:
            block = self.read(start, min(_BLOCK, stop - start))
            if (found := block.find(needle)) >= 0:
                return start + found
            if start + len(block) >= stop or not block:
                return -1
            start += len(block) - len(needle) + 1
        return -1

    def close(self) -> None:
        """Closes the file, if it was opened here."""
        if self._owned and self._file is not None:
            self._file.close()


class Stitched(RawIOBase):
    """A read-only file that consists of stretches of another one and of bytes that are given.

    Args:
        data: the other file.
        pieces: in order, ``(start, stop)`` of it, or bytes.
    """

    def __init__(self, data: Data, pieces: Iterable[tuple[int, int] | bytes]):
        self._data, self._at = data, 0
        self._pieces = [piece for piece in pieces if (len(piece) if isinstance(piece, bytes) else piece[1] > piece[0])]
        self._starts, total = [], 0
        for piece in self._pieces:
            self._starts.append(total)
            total += len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
        self.size = total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._at = max(0, {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self.size}[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        filled, wanted = 0, min(len(buffer), max(self.size - self._at, 0))
        while filled < wanted:
            number = bisect_right(self._starts, self._at) - 1
            piece, inner = self._pieces[number], self._at - self._starts[number]
            if isinstance(piece, bytes):
                chunk = piece[inner : inner + wanted - filled]
            else:
                chunk = self._data.read(piece[0] + inner, min(piece[1] - piece[0] - inner, wanted - filled))
            if not chunk:
                break
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
            self._at += len(chunk)
        return filled


@dataclass
class Part:
    """A stretch that reads as a file of its own.

    Attributes:
        pieces: what it is made of, see ``Stitched``.
        end: Ogg: its last granule position.
        continues: Ogg: it goes on with the stream of the part before it, behind a hole.
        has_end: False: it is not known whether the file once went on here.
        data: what the pieces are stretches of; None: the file itself.
    """

    pieces: list[tuple[int, int] | bytes]
    end: int = 0
    continues: bool = False
    has_end: bool = True
    data: Data | None = None


@dataclass
class Layout:
    """How a file is read right, and what is known to be missing.

    Attributes:
        parts: in order; none: the file reads right as it is.
        losses: what is known to be missing.
    """

    parts: list[Part] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


def skip_tags(data: Data, at: int = 0) -> int:
    """Where the audio begins behind ID3v2 tags."""
    while (head := data.read(at, 10))[:3] == b"ID3" and len(head) == 10 and max(head[6:]) < 128:
        footer = 10 if head[5] & 0x10 else 0
        at += 10 + footer + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    return at


def trim_tags(data: Data, stop: int) -> int:
    """Where the audio ends before ID3v1 and APEv2 tags."""
    while True:
        if data.read(stop - 128, 3) == b"TAG":
            stop -= 128
        elif (foot := data.read(stop - 32, 32))[:8] == b"APETAGEX" and len(foot) == 32:
            size, flags = struct.unpack_from("<I", foot, 12)[0], struct.unpack_from("<I", foot, 20)[0]
            stop -= size + (32 if flags & 0x80000000 else 0)
        else:
            return max(stop, 0)
