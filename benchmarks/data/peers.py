"""The peers, in an interpreter of their own (see peers.txt), over the same files or shards.

stable-audio-tools and audio-data-pytorch crop by themselves; litdata and MDS are ways of storing, here of the encoded
files, and crop by the same seek as the way written by hand.
"""

import importlib.util
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import byhand
import torch
import torchaudio
from serve import Row, serve
from torch.utils.data import DataLoader, RandomSampler

_LOAD, _INFO = torchaudio.load, torchaudio.info


def _dataset_module() -> Any:
    """stable_audio_tools.data.dataset as released, without the package's __init__, which imports all of its models."""
    if "stable_audio_tools" not in sys.modules:
        package = types.ModuleType("stable_audio_tools")
        package.__path__ = list(importlib.util.find_spec("stable_audio_tools").submodule_search_locations)
        sys.modules["stable_audio_tools"] = package
    return importlib.import_module("stable_audio_tools.data.dataset")


def stable_audio_tools(row: Row) -> Iterator[Any]:
    """Its loader of WebDataset shards, options as in its configurations, torchaudio's default backend."""
    dataset = _dataset_module()
    loader = dataset.WebDatasetDataLoader(
        [dataset.LocalWebDatasetConfig("bench", f"{row.corpus}/shards/{row.encoding}")],
        batch_size=row.batch_size,
        sample_size=row.num_samples,
        sample_rate=row.sample_rate,
        num_workers=0,
        epoch_steps=10**9,
        force_channels="mono" if row.channels == 1 else "stereo",
        remove_silence=False,
    )
    yield from loader.data_loader


def audio_data_pytorch(backend: str | None) -> Callable[[Row], Iterator[torch.Tensor]]:
    """Its WAVDataset over the folder of files, with the one repair that it needs to run at all."""

    def batches(row: Row) -> Iterator[torch.Tensor]:
        from audio_data_pytorch import AllTransform, WAVDataset

        # torchaudio 2.1 renamed the argument filepath; ffmpeg, its default backend, decodes all of a file to tell of it
        torchaudio.load = lambda filepath, **options: _LOAD(filepath, backend=backend, **options)
        torchaudio.info = lambda path: _INFO(path, backend=backend)
        dataset = WAVDataset(
            f"{row.corpus}/files/{row.encoding}",
            sample_rate=row.sample_rate,
            random_crop_size=row.num_samples,
            transforms=AllTransform(mono=row.channels == 1),
        )
        yield from DataLoader(dataset, row.batch_size, sampler=RandomSampler(dataset, True, num_samples=10**9))

    return batches


def _stored(row: Row, name: str, store: Callable[[list[str], str], None]) -> str:
    """The folder of the corpus in another store's format, made on first use."""
    folder = Path(row.corpus, "stores", f"{name}_{row.encoding}")
    if not folder.is_dir():
        files = sorted(map(str, Path(row.corpus, "files", row.encoding).iterdir()))[:-1]  # the last is held out
        folder.parent.mkdir(exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.part")
        store(files, str(temporary))
        temporary.rename(folder)
    return str(folder)


def _crops(row: Row, members: Iterator[bytes]) -> Iterator[torch.Tensor]:
    converter = byhand.Converter(row)
    while True:
        batch = converter.batch()
        for out in batch:
            converter.seek(io.BytesIO(next(members)), out)
        yield batch


def _read(path: str) -> dict[str, bytes]:
    return {"audio": Path(path).read_bytes()}


def litdata(row: Row) -> Iterator[torch.Tensor]:
    import litdata

    def store(files: list[str], folder: str) -> None:
        litdata.optimize(_read, files, folder, chunk_bytes="64MB", num_workers=1)

    dataset = litdata.StreamingDataset(_stored(row, "litdata", store), shuffle=True)

    def members() -> Iterator[bytes]:
        while True:
            yield from (sample["audio"] for sample in dataset)

    return _crops(row, members())


def mds(row: Row) -> Iterator[torch.Tensor]:
    import streaming

    def store(files: list[str], folder: str) -> None:
        with streaming.MDSWriter(out=folder, columns={"audio": "bytes"}) as writer:
            for path in files:
                writer.write(_read(path))

    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=_stored(row, "mds", store), shuffle=True, batch_size=row.batch_size)

    def members() -> Iterator[bytes]:
        while True:
            yield from (sample["audio"] for sample in dataset)

    return _crops(row, members())


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(
        {
            "stable-audio-tools": stable_audio_tools,
            "audio-data-pytorch": audio_data_pytorch("soundfile"),
            "audio-data-pytorch, default backend": audio_data_pytorch(None),
            "litdata + seek": litdata,
            "MDS + seek": mds,
        }
    )
