"""What a user could write by hand, without a framework; the first two are what every loader here is held against."""

import io
import json
import mmap
import tarfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import torch
import torchaudio
import webdataset as wds
from serve import Row
from torch import Tensor


class Converter:
    """Random crops of opened files and of int16 arrays, at the row's rate and channels."""

    def __init__(self, row: Row):
        self.row, self.rng = row, np.random.default_rng(0)
        self.length = -(-row.num_samples * row.rate_in // row.sample_rate)  # of a crop in the file
        self.resample = torchaudio.transforms.Resample(row.rate_in, row.sample_rate)

    def batch(self) -> Tensor:
        return torch.empty(self.row.batch_size, self.row.channels, self.row.num_samples)

    def seek(self, file: BinaryIO | io.BytesIO, out: Tensor) -> None:
        """A crop of a file, decoding no more than it, to ``out`` ``[C, T]``."""
        with sf.SoundFile(file) as f:
            f.seek(self.rng.integers(max(f.frames - self.length, 0) + 1))
            self.convert(torch.from_numpy(f.read(self.length, dtype="float32", always_2d=True).T), out)

    def convert(self, audio: Tensor, out: Tensor) -> None:
        """Samples ``[C, N]`` at the files' rate to ``out``, filled with zeros."""
        if audio.shape[0] != self.row.channels:
            audio = audio.mean(0, keepdim=True)
        if self.row.rate_in != self.row.sample_rate:
            audio = self.resample(audio)
        audio = audio[:, : self.row.num_samples]
        out[:, : audio.shape[1]] = audio
        out[:, audio.shape[1] :] = 0


class _Member(io.RawIOBase):
    """A member of a memory-mapped tar as a file."""

    def __init__(self, memory: memoryview):
        self.memory, self.at = memory, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, len(self.memory))[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        chunk = self.memory[self.at : self.at + len(buffer)]
        buffer[: len(chunk)] = chunk
        self.at += len(chunk)
        return len(chunk)


def shards(row: Row) -> list[str]:
    return sorted(glob(f"{row.corpus}/shards/{row.encoding}/train-*.tar"))


def mapped_tar(row: Row) -> Iterator[Tensor]:
    """Map the tars, remember where members are, seek in them, decode only the crop, straight into the batch."""
    members, converter = [], Converter(row)
    for path in shards(row):
        with open(path, "rb") as file:
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        with tarfile.open(path) as tar:
            found = [m for m in tar if m.name.endswith(row.encoding)]
        members += [memory[m.offset_data : m.offset_data + m.size] for m in found]
    while True:
        batch = converter.batch()
        for out in batch:
            converter.seek(_Member(members[converter.rng.integers(len(members))]), out)  # type: ignore[arg-type]
        yield batch


def mapped_pcm(row: Row) -> Iterator[Tensor]:
    """The limit without compression: all samples as one memory-mapped array of int16."""
    layout, converter = json.loads(Path(row.corpus, "pcm16.json").read_text(encoding="utf-8")), Converter(row)
    samples = np.memmap(f"{row.corpus}/pcm16.bin", dtype=np.int16, mode="r").reshape(-1, layout["channels"])
    starts, same_rate = [*layout["starts"], layout["frames"]], row.rate_in == row.sample_rate
    while True:
        batch = converter.batch()
        for out in batch:
            clip = converter.rng.integers(len(starts) - 1)
            stop = starts[clip + 1]
            at = converter.rng.integers(starts[clip], max(stop - converter.length, starts[clip]) + 1)
            crop = samples[at : min(at + converter.length, stop)].T
            if same_rate and len(crop) == row.channels:  # converted where it belongs
                np.multiply(crop, np.float32(1 / 32768), out=out.numpy()[:, : crop.shape[1]])
                out[:, crop.shape[1] :] = 0
            else:
                converter.convert(torch.from_numpy(np.multiply(crop, np.float32(1 / 32768), order="C")), out)
        yield batch


def webdataset_full(row: Row) -> Iterator[Tensor]:
    """webdataset as its documentation has it: read each member, decode all of it, crop, batch."""
    converter = Converter(row)

    def decode(sample: dict) -> tuple[Tensor]:
        audio = torch.from_numpy(sf.read(io.BytesIO(sample[row.encoding]), dtype="float32", always_2d=True)[0].T)
        start = converter.rng.integers(max(audio.shape[1] - converter.length, 0) + 1)
        out = torch.empty(row.channels, row.num_samples)
        converter.convert(audio[:, start : start + converter.length], out)
        return (out,)

    dataset = wds.WebDataset(shards(row), resampled=True, shardshuffle=False).map(decode).batched(row.batch_size)
    yield from (audio for (audio,) in dataset)


WAYS = {"mapped tar + seek": mapped_tar, "mapped PCM16": mapped_pcm, "webdataset + full decode": webdataset_full}
