"""Reads files with wrong headers by their actual content: in parts, forward only, or to their real end."""

from pathlib import Path
from typing import NamedTuple

from audio_diffusion.data.audio import ffmpeg
from audio_diffusion.data.audio.decoders import Decoder, Pcm16, open_plain
from audio_diffusion.data.audio.formats import chunks, flac, mpeg, ogg
from audio_diffusion.data.audio.formats.containers import Data, Layout, Loss, skip_tags
from audio_diffusion.data.audio.reader import File, Reader, UnusableAudio
from audio_diffusion.data.audio.sequence import Chain, Forward, real_frames

MAX_MISSING = 0.2  # default for the fraction of a file that may be missing
_UNKNOWN = 1 << 60  # frames; libsndfile reports more if the header has no number


class Whole(NamedTuple):
    """A reader of the whole file, and the losses known to be in it."""

    reader: Reader
    losses: list[Loss]


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
    lost_s, length_s = sum(loss.seconds for loss in losses), reader.frames / reader.samplerate
    # the number of frames of an MP3 comes from its header and includes missing ones
    return lost_s / max(length_s if reader.encoding.startswith("MP3") else lost_s + length_s, 1e-9)
