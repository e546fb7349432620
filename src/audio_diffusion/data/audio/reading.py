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

from audio_diffusion.data.audio.formats.containers import Loss
from audio_diffusion.data.audio.reader import MAX_SAMPLE, SAMPLE_RATES, Reader, UnusableAudio, Window, check_samples
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

#: extensions of audio files, without the dot
EXTENSIONS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "aifc", "au", "caf", "w64")
#: extensions of audio that FFmpeg reads (``pip install -e '.[av]'``) and that is converted when packed
CONVERTED = ("aac", "ac3", "amr", "ape", "m4a", "m4b", "mka", "mov", "mp4", "webm", "wma", "wv")
PACKED = (*EXTENSIONS, *CONVERTED)
_NAMED = 3  # gaps of one file that are named


@dataclass(frozen=True)
class AudioInfo:
    """Properties of a file: frames (samples per channel), sample rate in Hz, channels, encoding, and its missing audio:
    seconds, and position and reason in words."""

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
    """The result of reading a crop: number of samples from the file (the rest is padding), start of the crop and
    duration of the file, both in seconds."""

    num_valid: int
    seconds_start: float
    seconds_total: float


def check(
    file: str | Path | BinaryIO | memoryview,
    each: Callable[[NDArray[np.float32]], object] | None = None,
    max_missing: float = MAX_MISSING,
) -> AudioInfo:
    """Decodes a whole file, block by block in bounded memory, and returns its properties.

    Args:
        file: path, open binary file, or the bytes themselves.
        each: called with every block, float32 ``[n, C]``.
        max_missing: fraction of the file that may be missing, according to its header or its pages. A file with an
            unknown amount missing is refused only if this is 0; a file that may be complete is used.

    Raises:
        UnusableAudio: if it does not decode, is empty, has NaN, infinite or absurdly large samples, or if more of it is
            missing.
    """
    whole = open_whole(file)
    try:
        return decode_all(whole, each, max_missing)
    finally:
        whole.reader.close()


def decode_all(whole: Whole, each: Callable[[NDArray[np.float32]], object] | None, max_missing: float) -> AudioInfo:
    """Decodes an open reader to its end; see ``check``."""
    reader, frames = whole.reader, 0
    for block in reader.blocks():
        check_samples(block, frames, reader.samplerate)
        frames += len(block)
        if each is not None:
            each(block)
    if frames == 0:
        raise UnusableAudio("holds no samples", "empty")
    losses = list(whole.losses)
    if frames < reader.frames and not reader.encoding.startswith("MP3"):  # whose length is estimated
        reason = f"ends after {frames} frames, though its header says {reader.frames}"
        losses.append(Loss(frames / reader.samplerate, (reader.frames - frames) / reader.samplerate, reason))
    return described(reader, frames, losses, max_missing)


def described(reader: Reader, frames: int, losses: list[Loss], max_missing: float) -> AudioInfo:
    """Returns the properties of a file with ``frames`` frames.

    Raises:
        UnusableAudio: if more of it is missing than allowed.
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
    """Reads one crop at the requested sample rate into ``out``, and decodes only the part of the file that it needs.

    The start is a whole number of resampling periods, and the crop equals one cut from the whole resampled file.

    Args:
        file: path, open binary file, or the bytes themselves, in any format that libsndfile reads.
        out: float32 ``[C, T]`` for the crop, filled with zeros after the end of a shorter file.
        sample_rate: requested rate, Hz.
        where: position of the crop among all possible ones, 0 (start) to 1 (end).
        convert: whether to resample and map channels; if False, other rates and numbers of channels are unusable.
        pad: whether to accept files shorter than the crop.
        frames: number of frames of the whole file, if known; 0 to use its header, if nothing contradicts it.

    Raises:
        UnusableAudio: if it cannot be decoded, has NaN, infinite or absurdly large samples, or its rate has no short
            ratio to the requested one (a wrong header; resampling would take gigabytes). The content of ``out`` is then
            undefined.
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
    """``read_crop`` for an open reader."""
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
    """Whether a file is a resource file of macOS (``._x.mp3`` beside ``x.mp3``) and no audio."""
    return name.rpartition("/")[2].startswith("._")


def file_name(words: str) -> str:
    """Makes a short file name from any words: letters, digits and underscores; "sample" if there are none."""
    name = re.sub(r"\W+", "_", words)[:40].strip("_")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # file names of this system are ASCII
        name = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    return name or "sample"
