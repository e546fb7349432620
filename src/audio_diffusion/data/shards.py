"""WebDataset shards: which there are, and their members as files."""

import json
import mmap
from collections.abc import Sequence
from glob import escape, glob, has_magic
from pathlib import Path
from typing import BinaryIO, cast

import webdataset as wds

from audio_diffusion.data.index import ShardIndex, Window, read_json

MANIFEST = "manifest.json"


def expand(pattern: str) -> list[str]:
    """Shard paths for a folder (its train-*.tar), glob or brace pattern such as ``s/train-{000..127}.tar``, sorted.

    Raises:
        ValueError: if nothing matches, or a shard of a brace pattern is missing.
    """
    if Path(pattern).is_dir():
        pattern = _inside(pattern, "train-*.tar")
    paths = sorted(glob(pattern)) if has_magic(pattern) and "{" not in pattern else []
    if not paths:
        paths = [p for part in wds.shardlists.expand_urls(pattern) for p in (sorted(glob(part)) or [part])]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"shards: expected files at {pattern!r}, but {missing[0]!r} does not exist"
            + (f" (nor do {len(missing) - 1} more)" if len(missing) > 1 else "")
            + ". Make shards with: python make_shards.py input=FOLDER output=SHARDS"
        )
    return paths


def _inside(folder: str, names: str) -> str:
    return str(Path(escape(folder)) / names)  # a folder may have brackets in its name


def held_out(pattern: str) -> str:
    """The pattern of the val-*.tar beside training shards, as make_shards.py lays them out."""
    return _inside(pattern, "val-*.tar") if Path(pattern).is_dir() else str(Path(pattern).parent / "val-*.tar")


def read_classes(pattern: str) -> list[str]:
    """The class names in the manifest beside the shards; none where there is no manifest or no label."""
    path = Path(expand(pattern)[0]).parent / MANIFEST
    manifest = json.loads(path.read_text()) if path.is_file() else {}
    return list(manifest.get("classes", [])) if isinstance(manifest, dict) else []  # it may be another tool's


class ShardReader:
    """Gives members of shards as files, without copying them; keeps the latest shards mapped."""

    def __init__(self, indexes: Sequence[ShardIndex], max_open: int = 64):
        self.indexes, self.max_open = indexes, max_open
        self._open: dict[int, memoryview] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # maps stay in the process that made them

    def _memory(self, shard: int) -> memoryview:
        memory = self._open.pop(shard, None)
        if memory is None:
            with open(self.indexes[shard].path, "rb") as f:
                memory = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
            if len(self._open) >= self.max_open:
                del self._open[next(iter(self._open))]
        self._open[shard] = memory  # last in the dict: used latest
        return memory

    def audio(self, shard: int, clip: int) -> BinaryIO:
        """The encoded audio of a clip as an open file."""
        offset, size = self.indexes[shard].audio[clip]
        return cast(BinaryIO, Window(self._memory(shard)[offset : offset + size]))

    def meta(self, shard: int, clip: int) -> dict:
        """The json of a clip; empty where there is none.

        Raises:
            ValueError: if it is not a json object.
        """
        fields = self.indexes[shard].fields
        offset, size = fields["json"][clip] if "json" in fields else (0, 0)
        return read_json(self._memory(shard)[offset : offset + size]) if size else {}
