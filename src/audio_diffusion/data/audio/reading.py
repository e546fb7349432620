"""Checking, cropping and writing audio files. Decoders are in decoders.py, those of irregular files in whole.py."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from torch import Tensor

from audio_diffusion.data.audio.decoders import MAX_SAMPLE, SAMPLE_RATES, Reader, UnusableAudio, Window, check_samples
from audio_diffusion.data.audio.formats.containers import Loss
from audio_diffusion.data.audio.resampling import check_fit, map_channels, read_window
from audio_diffusion.data.audio.whole import MAX_MISSING, Whole, open_for_crop, open_whole, second_try

__all__ = [
    "CONVERTED",
    "EXTENSIONS",
    "MAX_MISSING",
    "MAX_SAMPLE",
    "PACKED",
    "SAMPLE_RATES",
    "AudioInfo",
    "Crop",
    "UnusableAudio",
    "Window",
    "check",
    "file_name",
    "is_sidecar",
    "map_channels",
    "read_crop",
    "write_audio",
]

#: file name endings (without the dot) that are taken for audio
EXTENSIONS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "aifc", "au", "caf", "w64")
#: endings of audio that is read by FFmpeg (``pip install -e '.[av]'``), and converted when it is packed
CONVERTED = ("aac", "ac3", "amr", "ape", "m4a", "m4b", "mka", "mov", "mp4", "webm", "wma", "wv")
PACKED = (*EXTENSIONS, *CONVERTED)
_NAMED = 3  # gaps that are named of one file


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds: frames (samples per channel), rate in Hz, channels, how it is encoded; and what is missing of
    it: seconds, and where and why in words."""

    frames: int
    sample_rate: int
    channels: int
    format: str
    missing_s: float = 0.0
    missing: str = ""

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate


class Crop(NamedTuple):
    """What was read: samples that are the file's own (the rest is padding), where the crop starts, and how long the
    file is, both in seconds."""

    num_valid: int
    seconds_start: float
    seconds_total: float


def check(
    file: str | Path | BinaryIO | memoryview,
    each: Callable[[NDArray[np.float32]], object] | None = None,
    max_missing: float = MAX_MISSING,
) -> AudioInfo:
    """Decodes all of a file, block by block in bounded memory, and returns its properties.

    Args:
        file: path, open binary file, or the bytes themselves.
        each: given every block, float32 ``[n, C]``.
        max_missing: share of the file that may be missing, by what its header says or as its pages tell. A
            file that lacks an unknown amount is refused with 0 only; one that perhaps lacks nothing is used.

    Raises:
        UnusableAudio: if it does not decode, is empty, holds NaN, infinite or absurdly large samples, or if more of it
            is missing.
    """
    whole = open_whole(file)
    try:
        return decode_all(whole, each, max_missing)
    finally:
        whole.reader.close()


def decode_all(whole: Whole, each: Callable[[NDArray[np.float32]], object] | None, max_missing: float) -> AudioInfo:
    """Decodes what was opened to its end, see ``check``."""
    reader, frames = whole.reader, 0
    for block in reader.blocks():
        check_samples(block, frames, reader.samplerate)
        frames += len(block)
        if each is not None:
            each(block)
    if frames == 0:
        raise UnusableAudio("holds no samples", "empty")
    losses = list(whole.losses)
    if frames < reader.frames and not reader.encoding.startswith("MP3"):  # whose length is an estimate
        reason = f"ends after {frames} frames, though its header says {reader.frames}"
        losses.append(Loss(frames / reader.samplerate, (reader.frames - frames) / reader.samplerate, reason))
    return described(reader, frames, losses, max_missing)


def described(reader: Reader, frames: int, losses: list[Loss], max_missing: float) -> AudioInfo:
    """Returns the properties of a file with ``frames`` frames.

    Raises:
        UnusableAudio: if more of it is missing than may be.
    """
    info = AudioInfo(frames, reader.samplerate, reader.channels, reader.encoding)
    lost_s = sum(loss.seconds for loss in losses)
    if not losses:
        return info
    words = "; ".join(_words(loss, info.duration_s) for loss in losses[:_NAMED])
    words += f"; and {len(losses) - _NAMED} more" if len(losses) > _NAMED else ""
    if lost_s > max_missing * (lost_s + info.duration_s):
        share = 100 * lost_s / (lost_s + info.duration_s)
        raise UnusableAudio(f"{words}: {share:.3g} % of it, more than max_missing={max_missing:g} allows", "truncated")
    if max_missing == 0 and any(loss.is_certain for loss in losses):  # how much is missing is unknown
        raise UnusableAudio(f"{words}: max_missing=0 allows no file that lacks anything", "truncated")
    return replace(info, missing_s=round(lost_s, 6), missing=words)


def _words(loss: Loss, duration_s: float) -> str:
    """Describes missing audio for messages, such as "0.120 s at 207.0 s: ends after .."."""
    start_s = loss.start_s if loss.start_s >= 0 else duration_s
    amount = f"{loss.seconds:.3f} s" if loss.seconds else "an unknown length"
    return f"{amount} {'' if loss.is_certain else 'may be '}missing at {start_s:.2f} s: {loss.reason}"


def read_crop(
    file: str | Path | BinaryIO | memoryview,
    out: Tensor,
    sample_rate: int,
    where: float = 0.0,
    convert: bool = True,
    pad: bool = True,
    frames: int = 0,
) -> Crop:
    """One crop at the wanted rate, decoding only what it needs, written to where it is wanted.

    The start is a whole number of resampling periods; the crop is what would be cut out of the whole resampled file.

    Args:
        file: path, open binary file, or the bytes themselves, of any format libsndfile reads.
        out: float32 ``[C, T]``, which the crop is written to, zeros after the end of a shorter file.
        sample_rate: wanted rate, Hz.
        where: position of the crop among all that fit, 0 (start) to 1 (end).
        convert: resample and map channels; without, a file of another rate or number of channels is unusable.
        pad: take files shorter than the crop.
        frames: that the whole file has, as far as that is known; 0: what its header says, if nothing speaks against it.

    Raises:
        UnusableAudio: if it cannot be decoded, holds NaN, infinite or absurdly large samples, or has a rate in no
            short ratio to the wanted one (a broken header; resampling would take gigabytes). ``out`` may then hold
            anything.
    """
    f = open_for_crop(file, frames)
    try:
        return _crop(f, out, sample_rate, where, convert, pad)
    except UnusableAudio as error:
        if error.kind not in ("corrupt", "truncated"):
            raise
        before, problem = (type(f), f.frames), error
    finally:
        f.close()
    f = second_try(file, frames, problem)
    try:
        if (type(f), f.frames) == before:
            raise problem
        return _crop(f, out, sample_rate, where, convert, pad)
    finally:
        f.close()


def _crop(f: Reader, out: Tensor, sample_rate: int, where: float, convert: bool, pad: bool) -> Crop:
    """``read_crop`` of what is open."""
    channels, num_samples = out.shape
    ratio = check_fit(f, sample_rate, channels, convert)
    up = ratio.numerator
    total = f.frames * up // ratio.denominator  # samples of the file at the wanted rate
    if not pad and total < num_samples:
        raise UnusableAudio(f"has {total} samples, fewer than a crop's {num_samples}, and pad is off", "short")
    last = max(total - num_samples, 0) // up
    start = min(int(where * (last + 1)), last) * up  # at the wanted rate, a multiple of `up`
    num_valid = read_window(f, f.frames, out, start, ratio)
    out.numpy()[:, num_valid:] = 0  # small steps in torch cost several times as much
    return Crop(num_valid, start / sample_rate, f.frames / f.samplerate)


def write_audio(path: str | Path, audio: Tensor, sample_rate: int, subtype: str = "PCM_16") -> None:
    """Writes ``[C, T]`` (full scale ±1; louder is clipped in integer subtypes) in the format of the path's ending."""
    sf.write(path, audio.detach().cpu().float().T.numpy(), sample_rate, subtype=subtype)


def is_sidecar(name: str) -> bool:
    """Whether a file is what macOS keeps of another one (``._x.mp3`` beside ``x.mp3``), and no audio."""
    return name.rpartition("/")[2].startswith("._")


def file_name(words: str) -> str:
    """A short name for a file out of any words: letters, digits and underscores; "sample" where there are none."""
    name = re.sub(r"\W+", "_", words)[:40].strip("_")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # file names of this system are ASCII
        name = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    return name or "sample"
