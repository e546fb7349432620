"""Readers of audio without random access, and of files that consist of several parts."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from audio_diffusion.data.audio.decoders import Decoder, Pcm16, open_plain
from audio_diffusion.data.audio.formats import ogg
from audio_diffusion.data.audio.formats.containers import Data, Loss, Part, Stitched
from audio_diffusion.data.audio.reader import Reader, UnusableAudio, check_samples
from audio_diffusion.data.audio.resampling import check_fit, read_window

_TAIL = 1 << 18  # frames decoded at once


class Forward:
    """Random access to audio that can only be decoded from its beginning.

    Earlier frames are discarded; reading before the current position restarts decoding from the beginning.

    Args:
        reopen: opens a new reader.
        start_s: start of the audio in the file that it is a part of, in seconds, for messages.
    """

    def __init__(self, reopen: Callable[[], Reader], start_s: float = 0.0):
        self._reopen, self._open, self._start_s = reopen, reopen(), start_s
        self.samplerate, self.channels, self.encoding = self._open.samplerate, self._open.channels, self._open.encoding
        self.frames = self._open.frames
        self._restart()

    def _restart(self) -> None:
        self._blocks, self._start = self._open.blocks(), 0
        self._kept: list[NDArray[np.float32]] = []

    def limit(self, frames: int) -> None:
        """Sets the number of frames."""
        self.frames = frames

    def samples(self, first: int, count: int) -> NDArray[np.float32]:
        """Reads ``count`` frames starting at ``first``, float32 ``[n, C]``.

        Raises:
            UnusableAudio: if they cannot be decoded.
        """
        if first < self._start:
            self._open.close()
            self._open = self._reopen()
            self._restart()
        while self._kept and self._start + len(self._kept[0]) <= first:
            self._start += len(self._kept.pop(0))
        have = self._start + sum(map(len, self._kept))
        while have < first + count:
            block = next(self._blocks, None)
            if block is None:
                raise UnusableAudio(f"ends after {have} frames, though {self.frames} were expected", "truncated")
            have += len(block)
            if have <= first:
                self._start = have
            else:
                self._kept.append(block.copy())
        samples = np.concatenate(self._kept)[first - self._start :][:count]
        check_samples(samples, first, self.samplerate, self._start_s)
        return samples

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields all frames, block by block."""
        yield from self._reopen().blocks()

    def close(self) -> None:
        """Closes the file."""
        self._open.close()


class Chain:
    """Reads the parts of a file in sequence, each with its own decoder, at the sample rate and channels of the first.

    Args:
        data: the file.
        parts: parts of the file.

    Raises:
        UnusableAudio: if no part can be decoded.
    """

    def __init__(self, data: Data, parts: list[Part]):
        self._data, self.losses = data, list[Loss]()
        self._parts: list[
            tuple[Part, int, int]
        ] = []  # with its number of frames, and that at the rate of the first part
        self._opened: tuple[int, Reader] | None = None
        self.frames, end, error = 0, 0.0, None
        for part in parts:
            try:
                decoder = self._open(part, self._seconds)
                end = self._add(part, decoder, end)
                decoder.close()
            except UnusableAudio as problem:
                error = problem
                self.losses.append(Loss(self._seconds, 0.0, f"a part of it {problem}"))
        if not self._parts:
            raise error or UnusableAudio("holds no samples", "empty")

    @property
    def _seconds(self) -> float:
        return self.frames / self.samplerate if self._parts else 0.0

    def _open(self, part: Part, start_s: float) -> Reader:
        def opened() -> Decoder | Pcm16:
            decoder = open_plain(Stitched(part.data or self._data, part.pieces))  # type: ignore[arg-type]
            if isinstance(decoder, Decoder):
                decoder.start_s = start_s
            return decoder

        first = opened()
        if first.can_seek:
            return first
        first.close()
        return Forward(opened, start_s)

    def _add(self, part: Part, decoder: Reader, end: float) -> float:
        """Adds a part and records audio missing before it; returns the end of the part in its stream, in seconds."""
        frames = real_frames(decoder)
        if not self._parts:
            self.samplerate, self.channels, self.encoding = decoder.samplerate, decoder.channels, decoder.encoding
        check_fit(decoder, self.samplerate, self.channels, convert=True)
        if decoder.channels != self.channels and 1 not in (decoder.channels, self.channels):
            raise UnusableAudio(f"has {decoder.channels} channels, where it begins with {self.channels}", "channels")
        granules = 48_000 if decoder.encoding.endswith("OPUS") else decoder.samplerate
        stop = part.end / granules
        if part.continues and (gap := stop - frames / decoder.samplerate - end) > 0:
            self.losses.append(Loss(self._seconds, gap, "pages are damaged or not there"))
        own = -(-frames * self.samplerate // decoder.samplerate)
        self._parts.append((part, frames, own))
        self.frames += own
        if not part.has_end:
            self.losses.append(Loss(self._seconds, 0.0, ogg.NO_END, is_certain=False))
        return stop

    def limit(self, frames: int) -> None:
        """Sets the number of frames."""
        self.frames = frames

    def samples(self, first: int, count: int) -> NDArray[np.float32]:
        """Returns frames starting at ``first``, float32 ``[n, C]``.

        Raises:
            UnusableAudio: if they cannot be decoded.
        """
        out, start, done = np.empty((count, self.channels), dtype=np.float32), 0, 0
        for number, (_, frames, own) in enumerate(self._parts):
            inner = max(first - start, 0)
            wanted = min(own - inner, count - done)
            if wanted > 0 and first < start + own:
                out[done : done + wanted] = self._read(number, frames, inner, wanted, start / self.samplerate)
                done += wanted
            start += own
        if done < count:
            raise UnusableAudio(f"ends after {first + done} frames, though {self.frames} were expected", "truncated")
        return out

    def _read(self, number: int, frames: int, first: int, count: int, start_s: float) -> NDArray[np.float32]:
        if self._opened is None or self._opened[0] != number:
            self._release()
            self._opened = (number, self._open(self._parts[number][0], start_s))
        decoder = self._opened[1]
        if (decoder.samplerate, decoder.channels) == (self.samplerate, self.channels):
            return decoder.samples(first, count)
        ratio, into = (
            check_fit(decoder, self.samplerate, self.channels, convert=True),
            torch.zeros(self.channels, count),
        )
        read_window(decoder, frames, into, first, ratio)
        return into.numpy().T

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields all frames, block by block."""
        for first in range(0, self.frames, _TAIL):
            yield self.samples(first, min(_TAIL, self.frames - first))

    def _release(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def close(self) -> None:
        """Closes the file."""
        self._release()
        self._data.close()


def real_frames(reader: Reader) -> int:
    """Returns the number of frames that can be decoded; the header of an Ogg file may claim more."""
    if not isinstance(reader, Decoder) or reader.container != "OGG":
        return reader.frames
    first = max(reader.frames - _TAIL, 0)
    try:
        with_end = reader.tail(first)
    except UnusableAudio:
        return reader.frames
    return first + with_end
