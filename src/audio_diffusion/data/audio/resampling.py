"""Resamples any part of a file, and converts its number of channels."""

from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audio_diffusion.data.audio.reader import Reader, UnusableAudio

_MAX_FILTER = 20_000_000  # limit on up·down, the size of the filter bank (80 MB); usual pairs of rates are far below it
_CONTEXT = 64  # samples at the lower of the two rates; more than the length of the resampling filter


@lru_cache(maxsize=32)
def _resampler(rate_in: int, rate_out: int) -> torch.nn.Module:
    import torchaudio  # imported here because it is slow, and files with the requested rate do not need it

    return torchaudio.transforms.Resample(rate_in, rate_out)


def map_channels(audio: Tensor, channels: int) -> Tensor:
    """Converts ``[C, T]`` to ``[channels, T]``: to mono by averaging, from mono by copying.

    Raises:
        UnusableAudio: for any other conversion, which is ambiguous.
    """
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(0, keepdim=True)
    if audio.shape[0] == 1:
        return audio.expand(channels, -1)
    raise UnusableAudio(f"has {audio.shape[0]} channels, which cannot be converted to {channels}", "channels")


@lru_cache(maxsize=32)
def _ratio(sample_rate: int, own: int) -> Fraction:
    return Fraction(sample_rate, own)


def check_fit(f: Reader, sample_rate: int, channels: int, convert: bool) -> Fraction:
    """Returns the ratio of the requested sample rate to the file's own.

    Raises:
        UnusableAudio: if the file cannot be converted, or needs it while ``convert`` is False.
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
    """Converts decoded samples ``[n, C]`` to float32 ``[C, n]``; numpy does this eight times faster than torch."""
    if samples.dtype == np.int16:
        np.multiply(samples.T, np.float32(1 / 32768), out=into)
    else:
        np.copyto(into, samples.T)


def read_window(f: Reader, frames: int, out: Tensor, start: int, ratio: Fraction) -> int:
    """Reads samples starting at ``start`` of the resampled file into ``out`` ``[C, n]``; returns their number.

    Some context on either side is also read, and resampling begins at a whole period, so the samples equal those of
    the whole file after resampling. Only the first ``frames`` frames of ``f`` are used.
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
