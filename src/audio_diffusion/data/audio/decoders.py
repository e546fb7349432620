"""Decoders: random access to a file's frames, by libsndfile."""

import contextlib
import io
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from audio_diffusion.data.audio.quiet import Quiet
from audio_diffusion.data.audio.reader import (
    SAMPLE_RATES,
    File,
    UnusableAudio,
    Window,
    check_samples,
)

_MP3_PREROLL = 29 * 1152  # frames decoded before a crop: the first output of an MP3 decoder after a seek is wrong
_OGG_TAIL = (
    1 << 18
)  # frames at the end of an Ogg file, which are read from there: a seek into the last page misses its target
_VORBIS_NEAR_S = 2  # seconds; for shorter seeks in a Vorbis file, libsndfile skips decoding, which gives wrong samples
_INTEGER = ("PCM_", "ALAC_", "ULAW", "ALAW")  # subtypes that cannot hold NaN, infinite or huge samples
_BLOCK = 1 << 18  # frames per block when a whole file is read
_SILENT = (b"fLaC", b"OggS")  # first bytes of formats whose decoders print nothing

_AS_IS = contextlib.nullcontext()


class Decoder(sf.SoundFile):
    """A SoundFile that, unlike its base class, does not seek after each read; this is 20 times as fast for FLAC.

    Attributes:
        promised: number of frames in its header; ``limit`` may set ``frames`` to another number.
        start_s: position of this part in the whole file, in seconds, for messages.
        container, codec: format and subtype, read once: SoundFile's own properties look them up at each access.

    Args:
        file: path, descriptor or open binary file.
        is_silent: whether the decoder is known to print nothing.
    """

    _scratch = threading.local()

    def __init__(self, file: str | bytes | BinaryIO | io.RawIOBase, is_silent: bool = False):
        with _AS_IS if is_silent else Quiet():  # the MP3 decoder prints warnings
            super().__init__(file)
        self.promised, self._at, self.start_s = self.frames, 0, 0.0
        self.container, self.codec = self.format, self.subtype

    def seekable(self) -> bool:
        return False

    @property
    def can_seek(self) -> bool:
        """Whether a frame can be reached without decoding all frames before it, which is not possible in GSM and some
        other formats."""
        return bool(self._info.seekable) and not self.codec.startswith("DWVW")  # reports it and fails

    @property
    def encoding(self) -> str:
        """Format and subtype."""
        return f"{self.container}/{self.codec}"

    def limit(self, frames: int) -> None:
        """Sets the number of frames if it is known better than from the header."""
        self._info.frames = frames

    def samples(self, first: int, count: int) -> NDArray[np.float32]:
        """Returns frames starting at ``first``, float32 ``[n, C]``; valid until the next call, which reuses the memory.

        Raises:
            UnusableAudio: if they cannot be decoded.
        """
        format, is_near = self.container, False
        preroll = min(_MP3_PREROLL, first) if format == "MP3" else 0
        if format == "OGG":
            preroll = max(0, min(first, first - self.promised + _OGG_TAIL))
            ahead = first - preroll - self._at
            is_known = self._at > 0 or (
                self._at == 0 and self.frames < self.promised
            )  # there, seeking to the start fails
            is_near = is_known and 0 <= ahead <= _VORBIS_NEAR_S * self.samplerate and self.codec == "VORBIS"
            preroll += ahead if is_near else 0
        needed = (count + preroll) * self.channels
        scratch = getattr(self._scratch, "array", None)
        if scratch is None or len(scratch) < needed:  # for long crops, allocating memory would cost more than decoding
            scratch = self._scratch.array = np.empty(needed, dtype=np.float32)
        try:
            into = scratch[:needed].reshape(count + preroll, self.channels)
            with Quiet() if format == "MP3" else _AS_IS:
                if not is_near:
                    self.seek(first - preroll)
                samples = self.read(count + preroll, out=into)[preroll:]
            self._at = first + len(samples)
        except (sf.LibsndfileError, RuntimeError) as error:
            self._at = -1
            raise UnusableAudio(f"broken near {self._time(first):.1f} s: {error}") from error
        if len(samples) < count and format != "MP3":  # whose length is estimated
            have = f"{first + len(samples)} frames, though its header says {self.frames}"
            raise UnusableAudio(f"{self._part()}ends after {have}", "truncated")
        if not self.codec.startswith(_INTEGER):
            check_samples(samples, first, self.samplerate, self.start_s)
        return samples

    def _time(self, frame: int) -> float:
        """Returns the position of a frame in the file, in seconds."""
        return self.start_s + frame / self.samplerate

    def _part(self, verb: str = "") -> str:
        """Returns the beginning of a message about numbers of frames, for a part of a file."""
        return f"the part that begins at {self.start_s:.2f} s {verb}" if self.start_s else ""

    def tail(self, first: int) -> int:
        """Returns the number of frames that can be decoded from ``first`` to the end.

        Raises:
            UnusableAudio: if they cannot be decoded.
        """
        count = 0
        try:
            self.seek(first)
            while len(block := self.read(_BLOCK, dtype="float32", always_2d=True)):
                count += len(block)
        except (sf.LibsndfileError, RuntimeError) as error:
            raise UnusableAudio(f"broken near {self._time(first):.1f} s: {error}") from error
        finally:
            self._at = -1
        return count

    def goes_back(self) -> bool:
        """Whether it can seek to its beginning, which fails in a Vorbis file whose first page trims much of it."""
        try:
            return self.seek(0) == 0 and len(self.read(1)) == 1
        except (sf.LibsndfileError, RuntimeError):
            return False

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields all frames, block by block; fewer than ``frames`` if the file ends earlier.

        Raises:
            UnusableAudio: if they cannot be decoded.
        """
        done = 0
        try:
            if self.codec == "OPUS":
                self.seek(0)  # reading Opus pages from the middle of a stream does not begin here
            while done < self.frames:
                with Quiet():
                    block = self.read(min(_BLOCK, self.frames - done), dtype="float32", always_2d=True)
                if not len(block):
                    return
                done += len(block)
                yield block
        except (sf.LibsndfileError, RuntimeError) as error:
            raise UnusableAudio(f"{self._part('is ')}broken after {done} frames: {error}") from error


class Pcm16:
    """16-bit WAV in memory, which needs no decoding."""

    def __init__(self, samplerate: int, samples: NDArray[np.int16]):
        self.samplerate, self._samples = samplerate, samples
        self.frames, self.channels = samples.shape

    encoding, can_seek = "WAV/PCM_16", True

    def limit(self, frames: int) -> None:
        """Sets the number of frames."""
        self.frames = min(frames, self.frames)

    def samples(self, first: int, count: int) -> NDArray[np.int16]:
        return self._samples[first : first + count]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields all frames, block by block."""
        for first in range(0, self.frames, _BLOCK):
            yield self._samples[first : min(first + _BLOCK, self.frames)] * np.float32(1 / 32768)

    def close(self) -> None:
        """Does nothing."""


def pcm16(memory: memoryview) -> Pcm16 | None:
    """Returns the samples of a plain 16-bit WAV file; None for any other or unusual file, which libsndfile reads."""
    if memory[:4] != b"RIFF" or memory[8:12] != b"WAVE":
        return None
    at, format = 12, None
    while at + 8 <= len(memory):
        name, size = struct.unpack_from("<4sI", memory, at)
        at += 8
        if name == b"fmt " and size >= 16:
            format = struct.unpack_from("<HHIIHH", memory, at) if at + 16 <= len(memory) else None
        if name == b"data":
            break
        at += size + size % 2
    else:
        return None
    if format is None or format[0] != 1 or format[5] != 16 or not 1 <= format[1] <= 64 or format[4] != 2 * format[1]:
        return None
    frames = min(size, len(memory) - at) // format[4]
    data = np.frombuffer(memory, dtype="<i2", count=frames * format[1], offset=at)
    return Pcm16(format[2], data.reshape(frames, format[1]))


def _descriptor(path: str | bytes | Path) -> str | bytes | int:
    """Opens a file for libsndfile where the system shares descriptors. Given a path, libsndfile would also examine
    files beside it (macOS keeps ``._x.mp3`` beside ``x.mp3``) and guess an unknown format from the name."""
    if os.name != "posix" and os.path.exists(path):
        return os.fspath(path)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # libsndfile closes it
    except FileNotFoundError as error:
        raise UnusableAudio("there is no such file", "read") from error
    except OSError as error:
        raise UnusableAudio(f"cannot be read: {error.strerror}", "read") from error


#: messages of libsndfile that require knowledge of its structures, and their meanings
_PLAINLY = {
    "SF_INFO struct incomplete.": "its header gives no usable sample rate, number of channels or format",
    "System error.": "it could not be read, or its header is broken",
}


def _plainly(error: Exception) -> str:
    """Rewords an error of libsndfile for users."""
    said = str(error).split(": ")[-1]
    return _PLAINLY.get(said, said)


def _is_empty(file: Any) -> bool:
    """Whether a file, by its path or open, has no bytes."""
    if isinstance(file, str | bytes | Path):
        return os.path.getsize(file) == 0
    return file.seek(0, os.SEEK_END) == 0


def open_plain(file: File) -> Decoder | Pcm16:
    """Opens a file as its header describes it.

    Raises:
        UnusableAudio: if libsndfile does not know the format, the rate is impossible, or there are no samples.
    """
    opened: Decoder | Pcm16 | None = pcm16(file) if isinstance(file, memoryview) else None
    if opened is None:
        is_silent = False
        if isinstance(file, memoryview):
            is_silent = file[:4] in _SILENT
            file = Window(file)  # type: ignore[assignment]
        try:
            path_or_file = _descriptor(file) if isinstance(file, str | bytes | Path) else file
            opened = Decoder(path_or_file, is_silent)  # type: ignore[arg-type]
        except (sf.LibsndfileError, RuntimeError) as error:
            reason = "the file is empty (0 bytes)" if _is_empty(file) else _plainly(error)
            raise UnusableAudio(f"cannot be decoded: {reason}", "format") from error
    low, high = SAMPLE_RATES
    problem = None
    if not low <= opened.samplerate <= high:
        problem = UnusableAudio(f"sample rate {opened.samplerate} Hz is outside {low} to {high} Hz", "rate")
    elif opened.frames <= 0:
        problem = UnusableAudio("holds no samples", "empty")
    if problem:
        opened.close()
        raise problem
    return opened
