"""Reads pieces of long files at a given sample rate, and encodes them."""

import io
import warnings
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import torch
from numpy.typing import NDArray
from torch import Tensor

from audio_diffusion.data.audio.reading import AudioInfo, UnusableAudio, decode_all, described
from audio_diffusion.data.audio.resampling import check_fit, read_window
from audio_diffusion.data.audio.whole import open_whole

_BLOCK = 1 << 19  # samples per channel that are resampled at a time


def probe(file: str | Path | BinaryIO | memoryview, exact: bool = True, max_missing: float = 1.0) -> AudioInfo:
    """Reads a file's properties from its header and structure.

    Args:
        file: path, open binary file, or the bytes themselves.
        exact: whether to decode MP3 and formats without a length, which is the only way to get their exact length.
        max_missing: fraction of the file that may be missing.

    Raises:
        UnusableAudio: if it is not audio, is empty, has an impossible sample rate, or if more of it is missing.
    """
    whole = open_whole(file, with_ffmpeg=exact)
    try:
        if exact and (whole.reader.encoding.startswith("MP3") or not whole.reader.frames):
            return decode_all(whole, None, max_missing)
        return described(whole.reader, whole.reader.frames, whole.losses, max_missing)
    finally:
        whole.reader.close()


def resampled_length(info: AudioInfo, sample_rate: int) -> int:
    """Returns the number of samples per channel after resampling a file to ``sample_rate``."""
    return -(-info.frames * sample_rate // info.sample_rate)


class Recording:
    """An open file from which any piece can be read at any sample rate, in memory independent of the file's length.

    Args:
        file: path, open binary file, or the bytes themselves.
        info: the file's properties, from ``probe``.

    Raises:
        UnusableAudio: if it cannot be opened.
    """

    def __init__(self, file: str | Path | BinaryIO | memoryview, info: AudioInfo):
        self.info, self._file = info, open_whole(file, with_ffmpeg=True).reader

    def read(self, start: int, count: int, sample_rate: int, channels: int) -> NDArray[np.float32]:
        """Reads ``count`` samples of the file at ``sample_rate``, float32 ``[C, n]``; fewer at the end of the file.

        The samples equal those of the whole file resampled at once, up to float32 rounding.

        Raises:
            UnusableAudio: if they cannot be decoded or converted, or are NaN, infinite or absurdly large.
        """
        ratio: Fraction = check_fit(self._file, sample_rate, channels, convert=True)
        count = min(count, resampled_length(self.info, sample_rate) - start)
        out = torch.empty(channels, count)
        done = 0
        while done < count:
            block = out[:, done : done + _BLOCK]
            read = read_window(self._file, self.info.frames, block, start + done, ratio)
            done += read
            if read < block.shape[1]:
                break
        return out[:, :done].numpy()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_file(file: str | Path, sample_rate: int, channels: int) -> Tensor:
    """Reads a whole file at the given sample rate, float32 ``[C, T]``.

    Raises:
        UnusableAudio: if it cannot be decoded or converted, or contains NaN, infinite or absurdly large samples.
    """
    info = probe(file)
    if info.missing:
        warnings.warn(f"{file}: {info.missing}; the rest of the file is used", stacklevel=2)
    recording = Recording(file, info)
    try:
        return torch.from_numpy(recording.read(0, resampled_length(info, sample_rate), sample_rate, channels))
    finally:
        recording.close()


def to_int16(audio: NDArray[np.float32]) -> tuple[NDArray[np.int16], int]:
    """Converts samples to 16-bit integers; also returns the number of samples above full scale, which are clipped.

    Samples are rounded to the nearest integer, without dither, so that 16-bit sources are unchanged. +1, one step more
    than the largest 16-bit number, becomes that number and is not counted.
    """
    scaled = np.rint(audio * np.float32(32768))
    over = int(np.count_nonzero(np.abs(scaled) > 32768))
    return np.clip(scaled, -32768, 32767).astype(np.int16), over


def encode(samples: NDArray[np.int16], sample_rate: int, format: str) -> bytes:
    """Encodes ``[C, T]`` as the bytes of a ``FLAC`` or 16-bit ``WAV`` file.

    Raises:
        UnusableAudio: if the format does not support this sample rate or number of channels.
    """
    file = io.BytesIO()
    try:
        sf.write(file, samples.T, sample_rate, format=format, subtype="PCM_16")
    except (sf.LibsndfileError, RuntimeError, ValueError) as error:
        channels = f"{len(samples)} channel{'s' * (len(samples) > 1)}"
        raise UnusableAudio(f"{format} cannot hold {channels} at {sample_rate} Hz", "channels") from error
    return file.getvalue()
