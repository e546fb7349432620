"""WebDataset shards and their indexes: which clip lies at which bytes of which tar."""

import contextlib
import io
import json
import mmap
import os
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from glob import escape, glob, has_magic
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import webdataset as wds

from audio_diffusion.data.audio import EXTENSIONS
from audio_diffusion.data.batch import Skipped

INDEX_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShardIndex:
    """The clips of one shard, in the order of their audio in the tar.

    Attributes:
        path: the shard.
        num_bytes: its size; like its time, it tells a replaced shard from the one that was indexed.
        keys: each clip's key: its members' path up to the last dot.
        audio: (offset, size) in bytes of each clip's audio member.
        meta: (offset, size) of its json member; (0, 0) where there is none.
        refused: (key, reason) of what the tar holds and cannot be used.
    """

    path: str
    num_bytes: int
    keys: list[str]
    audio: list[tuple[int, int]]
    meta: list[tuple[int, int]]
    refused: list[tuple[str, str]]

    def skipped(self) -> list[Skipped]:
        return [Skipped(self.path, key, reason) for key, reason in self.refused]


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


def _scan(path: str) -> ShardIndex:
    """Reads a tar's headers, not its data."""
    num_bytes = os.path.getsize(path)
    audio: dict[str, tuple[int, int]] = {}
    meta: dict[str, tuple[int, int]] = {}
    refused: list[tuple[str, str]] = []
    try:
        with open(path, "rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.name} has a negative size")  # reading on would go in circles
                key, _, extension = member.name.rpartition(".")
                place = (member.offset_data, member.size)
                kind = audio if extension.lower() in EXTENSIONS else meta if extension == "json" else None
                if member.isdir() or kind is None:
                    continue
                if not member.isfile() or member.issparse():
                    refused.append((member.name, "a link or another special member, not a plain file"))
                elif ".." in PurePosixPath(key).parts or key.startswith("/"):
                    refused.append((member.name, "its name leads out of the shard"))
                elif sum(place) > num_bytes:
                    refused.append((member.name, "cut off by the end of the shard"))
                elif key in kind:
                    refused.append((member.name, "a second member of this name"))
                else:
                    kind[key] = place
            f.seek(tar.offset)
            if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("no end mark after the last member found; it is cut off or damaged there")
    except tarfile.ReadError as error:
        refused.append((Path(path).name, f"the tar cannot be read to its end: {error}"))
    refused += [(key, "json without audio") for key in meta if key not in audio]
    keys = list(audio)
    return ShardIndex(path, num_bytes, keys, [audio[k] for k in keys], [meta.get(k, (0, 0)) for k in keys], refused)


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text)
    temporary.replace(path)


def index_path(shard: str | Path) -> Path:
    """Where a shard's index lies: beside it."""
    return Path(shard).with_suffix(".index.json")


def write_index(shard: str | Path) -> ShardIndex:
    """Indexes a shard and writes the index beside it (kept in memory only where the folder cannot be written)."""
    index = _scan(str(shard))
    columns = {"version": INDEX_VERSION, **asdict(index)}
    del columns["path"]  # the folder may be moved
    with contextlib.suppress(OSError):
        write_atomic(index_path(shard), json.dumps(columns))
    return index


def load_index(shard: str | Path) -> ShardIndex:
    """A shard's index, made on first sight, and anew where the shard has another size or is newer."""
    path, tar = index_path(shard), os.stat(shard)
    try:
        columns = json.loads(path.read_text())
        fits = columns["num_bytes"] == tar.st_size and path.stat().st_mtime_ns >= tar.st_mtime_ns
        if columns.pop("version") == INDEX_VERSION and fits:
            return ShardIndex(path=str(shard), **columns)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return write_index(shard)


class _Window(io.RawIOBase):
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
        return cast(BinaryIO, _Window(self._memory(shard)[offset : offset + size]))

    def meta(self, shard: int, clip: int) -> dict:
        """The json of a clip; empty where there is none.

        Raises:
            ValueError: if it is not a json object.
        """
        offset, size = self.indexes[shard].meta[clip]
        if not size:
            return {}
        meta = json.loads(bytes(self._memory(shard)[offset : offset + size]))
        if not isinstance(meta, dict):
            raise ValueError(f"its json is a {type(meta).__name__}, not an object")
        return meta
