"""Reads formats that libsndfile does not support (AAC, WMA, WebM, WavPack ..) with FFmpeg, which PyAV includes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from audio_diffusion.data.audio.formats.containers import Data, Loss
from audio_diffusion.data.audio.reader import File, UnusableAudio, Window

_MAGIC = {  # offset in the file: possible bytes at that offset
    0: (b"\x1aE\xdf\xa3", b"0&\xb2u\x8ef\xcf\x11", b"wvpk", b"MAC ", b"\x0bw", b"\xff\xf1", b"\xff\xf9", b"#!AMR"),
    4: (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"),
}
#: allowed formats; none of them opens other files
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,wv,ape,ac3,eac3,aac,amr,amrnb,amrwb"
_WITHOUT_LENGTH = ("aac", "ac3", "eac3", "amr")  # formats in which the duration is an estimate
_TOLERANCE_S = 0.25  # tolerated difference of durations in header and audio: not all encoders include their delay
_INSTALL = "this format requires FFmpeg; install it with: pip install -e '.[av]'"


def is_known(data: Data) -> bool:
    """Whether the first bytes of a file are those of a format that this module reads."""
    head = data.read(0, 16)
    return any(head.startswith(magic, at) for at, magics in _MAGIC.items() for magic in magics)


class FFmpeg:
    """Decodes the first audio stream of a file from beginning to end.

    Args:
        file: path, open binary file, or the bytes themselves.
        losses: list to which audio that cannot be decoded is added.

    Raises:
        UnusableAudio: if PyAV is not installed, or if the file contains no audio that it can decode.
    """

    frames = 0  # unknown before decoding

    def __init__(self, file: File, losses: list[Loss]):
        try:
            import av
        except ImportError as error:
            raise UnusableAudio(f"cannot be decoded: {_INSTALL}", "format") from error
        self._av: Any = av
        self._losses, self._owned = losses, isinstance(file, str | bytes | Path)
        if isinstance(file, memoryview):
            self._file: Any = Window(file)
        else:
            self._file = open(os.fspath(file), "rb") if isinstance(file, str | bytes | Path) else file  # noqa: SIM115
        self._file.seek(0)
        try:
            options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
            self._container: Any = av.open(cast(BinaryIO, self._file), options=options)
            if not self._container.streams.audio:
                raise UnusableAudio("contains no audio, only other streams", "empty")
            self._stream: Any = self._container.streams.audio[0]
            self.samplerate, self.channels = self._stream.rate, self._stream.channels
            name = self._container.format.name.partition(",")[0]
            self.encoding = f"{name}/{self._stream.codec_context.name}".upper()
        except (av.FFmpegError, ValueError) as error:
            self.close()
            raise UnusableAudio(f"cannot be decoded: {error}", "format") from error
        except UnusableAudio:
            self.close()
            raise

    def limit(self, frames: int) -> None:
        """Does nothing: the number of frames is known only after decoding."""

    def samples(self, first: int, count: int) -> NDArray[np.float32]:
        """Not supported, since a frame cannot be reached without decoding all earlier ones: wrap it in ``Forward``."""
        raise NotImplementedError

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields all frames, block by block, float32 ``[n, C]``."""
        av, done = self._av, 0
        resampler = av.AudioResampler(format="flt", layout=self._stream.layout, rate=self.samplerate)
        for frame in self._frames():
            for made in resampler.resample(frame):
                block = made.to_ndarray().reshape(-1, self.channels)
                done += len(block)
                yield block
        if self._stream.duration and not self._container.format.name.startswith(_WITHOUT_LENGTH):
            promised_s, done_s = float(self._stream.duration * self._stream.time_base), done / self.samplerate
            if promised_s - done_s > _TOLERANCE_S:
                reason = f"ends after {done_s:.2f} s, though its header says {promised_s:.2f}"
                self._losses.append(Loss(done_s, promised_s - done_s, reason))

    def _frames(self) -> Iterator[Any]:
        """Yields decoded frames, and None at the end; packets that cannot be decoded are recorded as losses."""
        av, at_s = self._av, 0.0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    for frame in packet.decode():
                        at_s += frame.samples / frame.sample_rate
                        yield frame
                except av.InvalidDataError as error:
                    length = float(packet.duration * packet.time_base) if packet.duration and packet.time_base else 0.0
                    self._losses.append(Loss(at_s, length, f"a packet cannot be decoded ({error})"))
        except av.FFmpegError as error:
            self._losses.append(Loss(at_s, 0.0, f"the rest cannot be read ({error})"))
        yield None

    def close(self) -> None:
        """Closes the file."""
        if hasattr(self, "_container"):
            self._container.close()
        if self._owned:
            self._file.close()
