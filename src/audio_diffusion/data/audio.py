"""Reading, cropping, resampling and writing audio: the one file here that knows soundfile and torchaudio."""

import io
import os
import re
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile as sf
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

#: file name endings (without the dot) that are taken for audio
EXTENSIONS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "aifc", "au", "caf", "w64")
SAMPLE_RATES = (1_000, 768_000)  # Hz; a header that says otherwise is wrong
MAX_SAMPLE = 100.0  # 40 dB over full scale: no float file is mixed that hot, but one on the scale of integers is
_MAX_FILTER = 20_000_000  # up·down: taps of the resampler's filter bank, 80 MB; all usual pairs of rates are far below
_MP3_PREROLL = 29 * 1152  # frames decoded before a crop: what an MP3 decoder gives right after a seek is wrong
_OGG_TAIL = 1 << 18  # frames at the end of an Ogg file, read from their beginning: a seek into the last page ends askew
_INTEGER = ("PCM_", "ALAC_", "ULAW", "ALAW")  # subtypes that cannot hold NaN, infinite or huge samples
_CONTEXT = 64  # samples at the lower of two rates: more than the resampler's filter reaches


class UnusableAudio(Exception):
    """The audio cannot be used; the message says why, ``kind`` is the fault's kind, one of ``batch.KINDS``."""

    def __init__(self, reason: str, kind: str = "corrupt"):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds: frames (samples per channel), rate in Hz, channels, and how it is encoded."""

    frames: int
    sample_rate: int
    channels: int
    format: str

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate


class Crop(NamedTuple):
    """What was read: samples that are the file's own (the rest is padding), where the crop starts, and how long the
    file is, both in seconds."""

    num_valid: int
    seconds_start: float
    seconds_total: float


class Window(io.RawIOBase):
    """A read-only file over a stretch of memory: decoders seek in it, and only what they read is touched."""

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


class _Decoder(sf.SoundFile):
    """A SoundFile that does not seek after each read, as SoundFile does: in FLAC that costs a twentieth of the time."""

    _scratch = threading.local()

    def seekable(self) -> bool:
        return False

    def samples(self, first: int, count: int) -> NDArray[np.float32]:
        """Frames from ``first`` on, float32 ``[n, C]``; valid until the next call, as the memory is used again.

        Raises:
            UnusableAudio: if they cannot be decoded.
        """
        preroll = min(_MP3_PREROLL, first) if self.format == "MP3" else 0
        if self.format == "OGG":
            preroll = max(0, min(first, first - self.frames + _OGG_TAIL))
        needed = (count + preroll) * self.channels
        scratch = getattr(self._scratch, "array", None)
        if scratch is None or len(scratch) < needed:  # fresh memory costs more than decoding does, where crops are long
            scratch = self._scratch.array = np.empty(needed, dtype=np.float32)
        try:
            self.seek(first - preroll)
            into = scratch[:needed].reshape(count + preroll, self.channels)
            samples = self.read(count + preroll, out=into)[preroll:]
        except (sf.LibsndfileError, RuntimeError) as error:
            raise UnusableAudio(f"broken near {first / self.samplerate:.1f} s: {error}") from error
        if len(samples) < count and self.format != "MP3":  # whose length is an estimate
            have = first + len(samples)
            raise UnusableAudio(f"ends after {have} frames, though its header says {self.frames}", "truncated")
        if not self.subtype.startswith(_INTEGER):
            _check_samples(samples)
        return samples


class _Pcm16:
    """16-bit WAV in memory: nothing to decode."""

    def __init__(self, samplerate: int, samples: NDArray[np.int16]):
        self.samplerate, self._samples = samplerate, samples
        self.frames, self.channels = samples.shape

    def samples(self, first: int, count: int) -> NDArray[np.int16]:
        return self._samples[first : first + count]

    def close(self) -> None:
        """Nothing to close."""


def _pcm16(memory: memoryview) -> _Pcm16 | None:
    """A plain 16-bit WAV file as its samples; None for anything else or out of the ordinary: that is libsndfile's."""
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
    return _Pcm16(format[2], data.reshape(frames, format[1]))


def _open(file: str | bytes | Path | BinaryIO | memoryview) -> _Decoder | _Pcm16:
    opened: _Decoder | _Pcm16 | None = _pcm16(file) if isinstance(file, memoryview) else None
    if opened is None:
        if isinstance(file, memoryview):
            file = Window(file)  # type: ignore[assignment]
        elif isinstance(file, str | Path) and os.name == "posix":
            file = os.fsencode(file)  # not every file's name is UTF-8
        try:
            opened = _Decoder(file)
        except (sf.LibsndfileError, RuntimeError) as error:
            raise UnusableAudio(f"cannot be decoded: {str(error).split(': ')[-1]}", "format") from error
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


def _check_samples(samples: np.ndarray) -> None:
    loudest = max(samples.max(), -samples.min()) if samples.size else 0.0
    if not np.isfinite(loudest):
        raise UnusableAudio("holds NaN or infinite samples", "samples")
    if loudest > MAX_SAMPLE:
        raise UnusableAudio(f"holds samples of {loudest:.3g}, where full scale is 1", "samples")


def check(
    file: str | Path | BinaryIO | memoryview, each: Callable[[NDArray[np.float32]], object] | None = None
) -> AudioInfo:
    """Decodes all of a file, block by block in bounded memory, and tells what it holds.

    Args:
        file: path, open binary file, or the bytes themselves.
        each: given every block, float32 ``[n, C]``.

    Raises:
        UnusableAudio: if it does not decode to its end, is empty, or holds NaN, infinite or absurdly large samples.
    """
    frames = 0
    opened = _open(Window(file) if isinstance(file, memoryview) else file)  # type: ignore[arg-type]
    assert isinstance(opened, _Decoder)
    with opened as f:
        try:
            while len(block := f.read(1 << 18, dtype="float32", always_2d=True)):
                frames += len(block)
                _check_samples(block)
                if each is not None:
                    each(block)
        except (sf.LibsndfileError, RuntimeError) as error:
            raise UnusableAudio(f"broken after {frames} frames: {error}") from error
        if frames == 0:
            raise UnusableAudio("holds no samples", "empty")
        if frames < f.frames and f.format != "MP3":
            raise UnusableAudio(f"ends after {frames} frames, though its header says {f.frames}", "truncated")
        return AudioInfo(frames, f.samplerate, f.channels, f"{f.format}/{f.subtype}")


@lru_cache(maxsize=32)
def _resampler(rate_in: int, rate_out: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate_in, rate_out)


def map_channels(audio: Tensor, channels: int) -> Tensor:
    """``[C, T] -> [channels, T]``: anything to mono by the mean, mono to any number by copying.

    Raises:
        UnusableAudio: for any other change, where there is no one right way.
    """
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(0, keepdim=True)
    if audio.shape[0] == 1:
        return audio.expand(channels, -1)
    raise UnusableAudio(f"has {audio.shape[0]} channels: no rule to make them {channels}", "channels")


@lru_cache(maxsize=32)
def _ratio(sample_rate: int, own: int) -> Fraction:
    return Fraction(sample_rate, own)


def _check_fit(f: _Decoder | _Pcm16, sample_rate: int, channels: int, convert: bool) -> Fraction:
    """The ratio of the rates, wanted : own.

    Raises:
        UnusableAudio: if the file cannot or must not be converted.
    """
    if not convert and f.samplerate != sample_rate:
        raise UnusableAudio(f"sample rate is {f.samplerate} Hz, not {sample_rate} Hz, and convert is off", "other_rate")
    if not convert and f.channels != channels:
        raise UnusableAudio(f"has {f.channels} channels, not {channels}, and convert is off", "other_channels")
    ratio = _ratio(sample_rate, f.samplerate)
    if ratio.numerator * ratio.denominator > _MAX_FILTER:
        raise UnusableAudio(f"sample rate {f.samplerate} Hz is in no short ratio to {sample_rate} Hz", "rate")
    return ratio


def _write(into: NDArray[np.float32], samples: NDArray) -> None:
    """Decoded samples ``[n, C]`` to float32 ``[C, n]``; in numpy, where that is eight times faster than in torch."""
    if samples.dtype == np.int16:
        np.multiply(samples.T, np.float32(1 / 32768), out=into)
    else:
        np.copyto(into, samples.T)


def _read_window(f: _Decoder | _Pcm16, frames: int, out: Tensor, start: int, ratio: Fraction) -> int:
    """Samples from ``start`` on of the whole file at the wanted rate, to ``out`` ``[C, n]``; how many there are.

    Some context is read on either side, and resampling begins with a whole period, so that the samples are those that
    would be cut out of the whole resampled file. Of ``f``, ``frames`` are used.
    """
    channels, num_samples = out.shape
    up, down = ratio.numerator, ratio.denominator
    context = -(-_CONTEXT * max(down, up) // (up * down)) if up != down else 0  # in periods
    first = max(start // up - context, 0)
    stop = -(-(start + num_samples) // up) + context
    samples = f.samples(first * down, min((stop - first) * down, frames - first * down))
    if up == down and samples.shape[1] == channels:
        num_valid = min(len(samples), num_samples)
        _write(out.numpy()[:, :num_valid], samples[:num_valid])
        return num_valid
    audio = np.empty(samples.shape[::-1], dtype=np.float32)
    _write(audio, samples)
    mapped = map_channels(torch.from_numpy(audio), channels)
    if up != down:
        mapped = _resampler(f.samplerate, f.samplerate * up // down)(mapped)
    mapped = mapped[:, start - first * up :][:, :num_samples]
    out[:, : mapped.shape[1]] = mapped
    return mapped.shape[1]


def read_crop(
    file: str | Path | BinaryIO | memoryview,
    out: Tensor,
    sample_rate: int,
    where: float = 0.0,
    convert: bool = True,
    pad: bool = True,
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

    Raises:
        UnusableAudio: if it cannot be decoded, holds NaN, infinite or absurdly large samples, or has a rate in no
            short ratio to the wanted one (a broken header; resampling would take gigabytes). ``out`` may then hold
            anything.
    """
    channels, num_samples = out.shape
    f = _open(file)
    try:
        ratio = _check_fit(f, sample_rate, channels, convert)
        up = ratio.numerator
        total = f.frames * up // ratio.denominator  # samples of the file at the wanted rate
        if not pad and total < num_samples:
            raise UnusableAudio(f"has {total} samples, fewer than a crop's {num_samples}, and pad is off", "short")
        last = max(total - num_samples, 0) // up
        start = min(int(where * (last + 1)), last) * up  # at the wanted rate, a multiple of `up`
        num_valid = _read_window(f, f.frames, out, start, ratio)
        out.numpy()[:, num_valid:] = 0  # small steps in torch cost several times as much
        return Crop(num_valid, start / sample_rate, f.frames / f.samplerate)
    finally:
        f.close()


def write_audio(path: str | Path, audio: Tensor, sample_rate: int, subtype: str = "PCM_16") -> None:
    """Writes ``[C, T]`` (full scale ±1; louder is clipped in integer subtypes) in the format of the path's ending."""
    sf.write(path, audio.detach().cpu().float().T.numpy(), sample_rate, subtype=subtype)


def file_name(words: str) -> str:
    """A short name for a file out of any words: letters, digits and underscores; "sample" where there are none."""
    return re.sub(r"\W+", "_", words)[:40].strip("_") or "sample"
