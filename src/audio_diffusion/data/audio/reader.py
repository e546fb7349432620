"""The interface of readers of audio files, their errors, and the checks of their samples."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATES = (1_000, 768_000)  # Hz; other rates in a header are errors
MAX_SAMPLE = 100.0  # 40 dB above full scale; float files with larger samples contain unscaled integers

File = str | bytes | Path | BinaryIO | memoryview


class UnusableAudio(Exception):
    """Raised for audio that cannot be used. The message has the reason; ``kind`` is one of ``data.faults.KINDS``."""

    def __init__(self, reason: str, kind: str = "corrupt"):
        super().__init__(reason)
        self.kind = kind


class Reader(Protocol):
    """The interface of everything that reads a file: one decoder, or several in sequence."""

    @property
    def frames(self) -> int: ...
    @property
    def samplerate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def encoding(self) -> str: ...
    def samples(self, first: int, count: int) -> NDArray: ...
    def limit(self, frames: int) -> None: ...
    def blocks(self) -> Iterator[NDArray[np.float32]]: ...
    def close(self) -> None: ...


class Window(io.RawIOBase):
    """A read-only file over a region of memory; only the bytes that a decoder reads are touched."""

    def __init__(self, memory: memoryview):
        self._memory, self._at = memory, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._memory)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        chunk = self._memory[self._at : self._at + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)


def check_samples(samples: np.ndarray, first: int, sample_rate: int, start_s: float = 0.0) -> None:
    """Checks samples ``[n, C]`` that begin at frame ``first`` of a file, or of the part of it that begins at
    ``start_s``.

    Raises:
        UnusableAudio: if any is NaN, infinite or absurdly large, with the time of the first one.
    """
    loudest = max(samples.max(), -samples.min()) if samples.size else 0.0
    if loudest <= MAX_SAMPLE:  # False for NaN
        return
    at_s = start_s + (first + int((~(np.abs(samples) <= MAX_SAMPLE)).any(1).argmax())) / sample_rate
    if not np.isfinite(loudest):
        raise UnusableAudio(f"holds NaN or infinite samples, the first at {at_s:.3f} s", "samples")
    raise UnusableAudio(f"holds samples of {loudest:.3g}, where full scale is 1, the first at {at_s:.3f} s", "samples")
