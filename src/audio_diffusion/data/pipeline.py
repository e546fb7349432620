"""The parts of a loader that run in workers; they are imported without Lightning, so that workers start quickly."""

from collections.abc import Iterable, Iterator

import webdataset as wds

from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.stream import ClipReader


class Batches(wds.DataPipeline):
    """A pipeline that knows its length (webdataset's ``with_length`` cannot be sent to spawned workers)."""

    length: int

    def __len__(self) -> int:
        return self.length


class ReadAhead:
    """A pipeline stage that fetches the remote data of the next batches while the first one is decoded."""

    def __init__(self, reader: ClipReader, store: RemoteStore):
        self.reader, self.store = reader, store

    def __call__(self, batches: Iterable[list[int]]) -> Iterator[list[int]]:
        return self.store.read_ahead((positions, self.reader.whole_members(positions)) for positions in batches)
