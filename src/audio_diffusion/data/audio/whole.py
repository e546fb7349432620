"""Reads files with wrong headers by their actual content: in parts, forward only, or to their real end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from audio_diffusion.data.audio import ffmpeg
from audio_diffusion.data.audio.decoders import Decoder, File, Pcm16, Reader, UnusableAudio, check_samples, open_plain
from audio_diffusion.data.audio.formats import chunks, flac, mpeg, ogg
from audio_diffusion.data.audio.formats.containers import Data, Layout, Loss, Part, Stitched, skip_tags
from audio_diffusion.data.audio.resampling import check_fit, read_window

MAX_MISSING = 0.2  # default for the fraction of a file that may be missing
_UNKNOWN = 1 << 60  # frames; libsndfile reports more if the header has no number
_TAIL = 1 << 18  # frames decoded at the end to find its position


class Whole(NamedTuple):
    """A reader of the whole file, and the losses known to be in it."""

    reader: Reader
    losses: list[Loss]


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


def _layout(data: Data, plain: Decoder | Pcm16 | None) -> tuple[Layout, int]:
    """Returns the parts of a file with a wrong header, and the number of frames if only that is wrong (else 0)."""
    frames, rate = (plain.frames, plain.samplerate) if plain else (0, 0)
    magic = data.read(skip_tags(data), 4)
    if magic == b"OggS":
        return ogg.layout(data), 0
    if magic == b"fLaC":
        return flac.layout(data)
    if isinstance(plain, Decoder) and plain.container == "MP3":
        return mpeg.layout(data, frames), 0
    return chunks.layout(data, frames, rate), 0


def open_whole(file: File, with_ffmpeg: bool = False) -> Whole:
    """Opens a reader of the entire content of a file, independent of its header.

    Args:
        file: path, open binary file, or the bytes themselves.
        with_ffmpeg: read what libsndfile does not know by FFmpeg.

    Raises:
        UnusableAudio: if nothing of it can be decoded.
    """
    plain, problem = None, None
    try:
        plain = open_plain(file)
    except UnusableAudio as error:
        problem = error
    place = file.tell() if not isinstance(file, str | bytes | Path | memoryview) else 0
    try:
        data = Data(file)
    except OSError as error:
        raise problem or UnusableAudio(str(error), "read") from error
    layout, frames = _layout(data, plain)
    if layout.parts:
        if plain is not None:
            plain.close()
        chain = Chain(data, layout.parts)
        return Whole(chain, [*chain.losses, *layout.losses])
    if not isinstance(file, str | bytes | Path | memoryview):
        file.seek(place)
    is_foreign = plain is None and ffmpeg.is_known(data)
    data.close()
    if is_foreign and with_ffmpeg:
        return Whole(Forward(lambda: ffmpeg.FFmpeg(file, layout.losses)), layout.losses)
    if is_foreign:
        raise UnusableAudio("cannot be decoded here: only packing reads it, with format=flac", "format")
    if plain is None:
        assert problem is not None
        raise problem
    if not plain.can_seek:
        plain.close()
        return Whole(Forward(lambda: _reopened(file)), layout.losses)
    frames = frames or real_frames(plain)
    if frames == plain.frames and plain.encoding != "OGG/VORBIS":
        return Whole(plain, layout.losses)
    goes_back = isinstance(plain, Pcm16) or plain.goes_back()
    plain.close()  # it has been read before
    reader = _reopened(file) if goes_back else Forward(lambda: _reopened(file))
    reader.limit(frames)
    return Whole(reader, layout.losses)


def _reopened(file: File) -> Reader:
    if not isinstance(file, str | bytes | Path | memoryview):
        file.seek(0)
    return open_plain(file)


def open_for_crop(file: File, frames: int = 0) -> Reader:
    """Opens a reader for a crop; for most files this is the plain decoder, at no additional cost.

    Args:
        file: path, open binary file, or the bytes themselves.
        frames: number of frames of the whole file; 0 if unknown.

    Raises:
        UnusableAudio: if it cannot be decoded, or if more than ``MAX_MISSING`` of a file of unknown length is missing.
    """
    try:
        plain = open_plain(file)
    except UnusableAudio as error:
        return second_try(file, frames, error)
    if plain.can_seek and (plain.frames == frames or (frames == 0 and _looks_plain(file, plain))):
        return plain
    if plain.can_seek and 0 < frames < plain.frames and _ends_early(plain, frames):
        plain.limit(frames)
        return plain
    plain.close()
    return second_try(file, frames, None)


def _ends_early(plain: Decoder | Pcm16, frames: int) -> bool:
    """Whether a file that has fewer frames than its header claims nevertheless decodes correctly to its end."""
    if plain.encoding.startswith("MP3"):
        return frames % 576 == 0  # with a constant bit rate and no length in the header; others may be joined files
    return not plain.encoding.startswith("OGG")


def _looks_plain(file: File, plain: Decoder | Pcm16) -> bool:
    """Whether a quick check finds no contradiction to the file's header."""
    if isinstance(plain, Pcm16) or plain.container not in ("OGG", "MP3", "FLAC"):
        return True
    if plain.container == "FLAC":
        return plain.frames < _UNKNOWN
    place = file.tell() if not isinstance(file, str | bytes | Path | memoryview) else 0
    data = Data(file)
    is_plain = ogg.is_plain(data) if plain.container == "OGG" else mpeg.is_plain(data)
    data.close()
    if not isinstance(file, str | bytes | Path | memoryview):
        file.seek(place)
    return is_plain


def second_try(file: File, frames: int, problem: UnusableAudio | None) -> Reader:
    """Opens a file by its content after the plain decoder failed.

    Raises:
        UnusableAudio: the error of the first attempt, if the second is not better.
    """
    try:
        if not isinstance(file, str | bytes | Path | memoryview):
            file.seek(0)
        whole = open_whole(file)
    except UnusableAudio as error:
        raise problem or error from None
    if frames:
        whole.reader.limit(min(frames, whole.reader.frames))
    elif (lost := missing(whole.reader, whole.losses)) > MAX_MISSING:
        whole.reader.close()
        raise problem or UnusableAudio(f"{100 * lost:.0f} % of it are missing: {whole.losses[0].reason}", "truncated")
    return whole.reader


def missing(reader: Reader, losses: list[Loss]) -> float:
    """Returns the fraction of a file that is missing."""
    lost_s, told_s = sum(loss.seconds for loss in losses), reader.frames / reader.samplerate
    # the number of frames of an MP3 comes from its header and includes missing ones
    return lost_s / max(told_s if reader.encoding.startswith("MP3") else lost_s + told_s, 1e-9)
