"""Reading, cropping, resampling and writing audio: the one file here that knows soundfile and torchaudio."""

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import torch
import torchaudio
from torch import Tensor

#: file name endings (without the dot) that are taken for audio
EXTENSIONS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "aifc", "au", "caf", "w64")
SAMPLE_RATES = (1_000, 768_000)  # Hz; a header that says otherwise is wrong
MAX_SAMPLE = 100.0  # 40 dB over full scale: no float file is mixed that hot, but one on the scale of integers is
_MAX_FILTER = 20_000_000  # up·down: taps of the resampler's filter bank, 80 MB; all usual pairs of rates are far below
_MP3_PREROLL = 29 * 1152  # frames decoded before a crop: what an MP3 decoder gives right after a seek is wrong
_CONTEXT = 64  # samples at the lower of two rates: more than the resampler's filter reaches


class UnusableAudio(Exception):
    """The audio cannot be used; the message says why, ``kind`` in one word."""

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


def _open(file: str | bytes | Path | BinaryIO) -> sf.SoundFile:
    if isinstance(file, str | Path) and os.name == "posix":
        file = os.fsencode(file)  # not every file's name is UTF-8
    try:
        opened = sf.SoundFile(file)
    except (sf.LibsndfileError, RuntimeError) as error:
        raise UnusableAudio(f"cannot be decoded: {str(error).split(': ')[-1]}") from error
    low, high = SAMPLE_RATES
    problem = None
    if not low <= opened.samplerate <= high:
        problem = f"sample rate {opened.samplerate} Hz is outside {low} to {high} Hz"
    elif opened.frames <= 0:
        problem = "holds no samples"
    if problem:
        opened.close()
        raise UnusableAudio(problem)
    return opened


def _check_samples(samples: np.ndarray) -> None:
    if not np.isfinite(samples).all():
        raise UnusableAudio("holds NaN or infinite samples")
    if len(samples) and (loudest := max(samples.max(), -samples.min())) > MAX_SAMPLE:
        raise UnusableAudio(f"holds samples of {loudest:.3g}, where full scale is 1")


def check(path: str | Path) -> AudioInfo:
    """Decodes all of a file, block by block in bounded memory, and tells what it holds.

    Raises:
        UnusableAudio: if it does not decode to its end, is empty, or holds NaN, infinite or absurdly large samples.
    """
    frames = 0
    with _open(path) as f:
        try:
            for block in f.blocks(blocksize=1 << 18, dtype="float32", always_2d=True):
                frames += len(block)
                _check_samples(block)
        except (sf.LibsndfileError, RuntimeError) as error:
            raise UnusableAudio(f"broken after {frames} frames: {error}") from error
        if frames == 0:
            raise UnusableAudio("holds no samples")
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
    raise UnusableAudio(f"has {audio.shape[0]} channels: no rule to make them {channels}")


def read_crop(
    file: str | Path | BinaryIO, sample_rate: int, channels: int, num_samples: int, where: float = 0.0
) -> tuple[Tensor, int]:
    """One crop at the wanted rate, decoding only what it needs.

    The start is a whole number of resampling periods, and some context is read on either side, so that the crop
    is what would be cut out of the whole resampled file.

    Args:
        file: path or open binary file of any format libsndfile reads.
        sample_rate: wanted rate, Hz.
        channels: wanted channels.
        num_samples: T, length of the crop at the wanted rate.
        where: position of the crop among all that fit, 0 (start) to 1 (end).

    Returns:
        The crop, float32 ``[channels, num_samples]``, zeros after the end of a shorter file; and the number of
        samples that are the file's own.

    Raises:
        UnusableAudio: if it cannot be decoded, holds NaN, infinite or absurdly large samples, or has a rate in no
            short ratio to the wanted one (a broken header; resampling would take gigabytes).
    """
    with _open(file) as f:
        ratio = Fraction(sample_rate, f.samplerate)
        up, down = ratio.numerator, ratio.denominator
        if up * down > _MAX_FILTER:
            raise UnusableAudio(f"sample rate {f.samplerate} Hz is in no short ratio to {sample_rate} Hz")
        total = f.frames * up // down  # samples of the file at the wanted rate
        periods = int(where * (max(total - num_samples, 0) // up + 1))
        start = min(periods, max(total - num_samples, 0) // up) * up  # at the wanted rate, a multiple of `up`
        context = -(-_CONTEXT * max(down, up) // (up * down)) if ratio != 1 else 0  # in periods
        first = max(start // up - context, 0)
        stop = -(-(start + num_samples) // up) + context
        preroll = min(_MP3_PREROLL, first * down) if f.format == "MP3" else 0
        try:
            f.seek(first * down - preroll)
            samples = f.read((stop - first) * down + preroll, dtype="float32", always_2d=True)[preroll:]
        except (sf.LibsndfileError, RuntimeError) as error:
            raise UnusableAudio(f"broken near {first * down / f.samplerate:.1f} s: {error}") from error
    if len(samples) == 0:
        raise UnusableAudio(f"ends before {first * down} frames, though its header says {total * down // up}")
    _check_samples(samples)
    audio = map_channels(torch.from_numpy(samples.T), channels)
    if ratio != 1:
        audio = _resampler(f.samplerate, sample_rate)(audio)
    audio = audio[:, start - first * up :][:, :num_samples]
    crop = torch.zeros(channels, num_samples)
    crop[:, : audio.shape[1]] = audio
    return crop, audio.shape[1]


def write_audio(path: str | Path, audio: Tensor, sample_rate: int, subtype: str = "PCM_16") -> None:
    """Writes ``[C, T]`` (full scale ±1; louder is clipped in integer subtypes) in the format of the path's ending."""
    sf.write(path, audio.detach().cpu().float().T.numpy(), sample_rate, subtype=subtype)
