"""Layout of audio files: the parts that libsndfile can decode correctly, and the audio missing between them.

libsndfile trusts the header of a file. If the header is wrong (a length that was never written, two files in one, a
lost page), the file is described as several parts, each of which can be read as a separate file.
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
    """Missing audio: its start (-1.0 for the end of the audio) and duration (0.0 if unknown) in seconds, and why.

    ``is_certain`` is False if possibly nothing is missing.
    """

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
        """Reads at most ``count`` bytes at ``at``; fewer at the end of the file, none for a negative ``at``."""
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
        """Returns the offset of the first ``needle`` between ``start`` and ``stop``; -1 if there is none."""
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
    """A read-only file composed of ranges of another file and of given bytes.

    Args:
        data: the other file.
        pieces: in order, ranges ``(start, stop)`` of the other file, or bytes.
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
    """A part of a file that can be read as a separate file.

    Attributes:
        pieces: ranges and bytes that form the part, see ``Stitched``.
        end: last granule position (Ogg).
        continues: whether the part continues the stream of the part before it after a gap (Ogg).
        has_end: False if the original file may have continued after the part.
        data: the file of which the pieces are ranges; None for the file itself.
    """

    pieces: list[tuple[int, int] | bytes]
    end: int = 0
    continues: bool = False
    has_end: bool = True
    data: Data | None = None


@dataclass
class Layout:
    """The parts of a file, and the audio known to be missing.

    Attributes:
        parts: parts in order; empty if the file can be read as it is.
        losses: audio known to be missing.
    """

    parts: list[Part] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


def skip_tags(data: Data, at: int = 0) -> int:
    """Returns the offset of the audio after ID3v2 tags."""
    while (head := data.read(at, 10))[:3] == b"ID3" and len(head) == 10 and max(head[6:]) < 128:
        footer = 10 if head[5] & 0x10 else 0
        at += 10 + footer + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    return at


def trim_tags(data: Data, stop: int) -> int:
    """Returns the end of the audio before ID3v1 and APEv2 tags."""
    while True:
        if data.read(stop - 128, 3) == b"TAG":
            stop -= 128
        elif (foot := data.read(stop - 32, 32))[:8] == b"APETAGEX" and len(foot) == 32:
            size, flags = struct.unpack_from("<I", foot, 12)[0], struct.unpack_from("<I", foot, 20)[0]
            stop -= size + (32 if flags & 0x80000000 else 0)
        else:
            return max(stop, 0)
