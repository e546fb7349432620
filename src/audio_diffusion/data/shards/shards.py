"""Finds WebDataset shards and reads their members as bytes, locally or from a remote store."""

import contextlib
import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from audio_diffusion.data.faults import Skipped
from audio_diffusion.data.remote import RemoteError, RemoteStore, is_remote, version_seal
from audio_diffusion.data.shards import index as indexes
from audio_diffusion.data.shards.find import expand, folder_of, join, parent, read_manifest
from audio_diffusion.data.shards.index import Place, ShardIndex

_LOADING = 16  # threads that read indexes or request sizes
_KEPT_CLIPS = 100_000  # number of clips whose index entries a process caches, about 600 bytes each
_KEPT_MAPS = 256  # number of shards that a process keeps mapped
_FEW = 0.1  # if a smaller fraction of clips has a second audio member, these members are reported as duplicates

A = TypeVar("A")
B = TypeVar("B")


def _parallel(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    with ThreadPoolExecutor(_LOADING) as pool:
        return list(pool.map(function, items))


class Shards:
    """The shards of one data set; returns their members as bytes. Indexes are read when they are first needed.

    Args:
        paths: paths or URLs of the shards.
        num_clips: number of clips in each shard.
        num_bytes: size of each shard.
        store: store for URLs.
        refused: unusable members of the shards.
        versions: for each remote shard, a string that changes with its contents, or "" if the shard's index has it.
        audio_member: ending of the members that are the clips' audio; for None, see ``index.scan``.
    """

    def __init__(
        self,
        paths: Sequence[str],
        num_clips: Sequence[int],
        num_bytes: Sequence[int],
        store: RemoteStore | None = None,
        refused: Sequence[Skipped] = (),
        versions: Sequence[str] = (),
        audio_member: str | None = None,
    ):
        self.paths, self.num_clips, self.num_bytes = list(paths), np.asarray(num_clips), np.asarray(num_bytes)
        self.store, self.refused = store, list(refused)
        self.versions, self.audio_member = list(versions) or [""] * len(self.paths), audio_member
        self._forget()

    def _forget(self) -> None:
        self._indexes: dict[int, ShardIndex] = {}
        self._maps: dict[int, memoryview] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_indexes": {}, "_maps": {}}  # maps are not sent to other processes

    @classmethod
    def open(
        cls, patterns: Sequence[str], store: RemoteStore | None = None, audio_member: str | None = None
    ) -> "Shards":
        """Opens the shards that the patterns match.

        The properties of shards in a manifest are read from it; other shards are indexed, or all shards if
        ``audio_member`` selects among their members.

        Raises:
            ValueError: if shards are missing, contain no audio, or do not match the manifest next to them.
        """
        paths = [path for pattern in patterns for path in expand(pattern, store)]
        folders = {parent(path) for path in paths}
        listed = {
            join(folder, shard["name"]): shard
            for folder in folders
            for shard in read_manifest(folder, store).get("shards", [])
        }
        _check_manifests(patterns, paths, listed)
        unlisted = [path for path in paths if path not in listed or audio_member]
        of_them = _parallel(lambda path: load_index(path, store, audio_member=audio_member), unlisted)
        built = dict(zip(unlisted, of_them, strict=True))
        _check_choices(of_them, audio_member)
        num_clips = [len(built[path].keys) if path in built else listed[path]["clips"] for path in paths]
        refused = [skip for index in built.values() for skip in index.skipped()]
        if not sum(num_clips):
            such = ""
            if refused:
                first = f"{refused[0].key!r}: {refused[0].reason}"
                such = f"; the first of {len(refused)} members that cannot be used: {first}"
            raise ValueError(f"shards: expected audio in the {len(paths)} shards of {list(patterns)}, found none{such}")
        num_bytes = [built[path].num_bytes if path in built else listed[path]["bytes"] for path in paths]
        versions = [str(listed[path].get("sha256", "")) if path in listed else "" for path in paths]
        return cls(paths, num_clips, num_bytes, store, refused, versions, audio_member)

    @property
    def is_remote(self) -> bool:
        """Whether any of the shards is a URL."""
        return any(map(is_remote, self.paths))

    def check_sizes(self) -> None:
        """Compares each shard's size with the expected one.

        Raises:
            ValueError: if shards are missing or have another size; the message names the first ones.
        """
        listed = self._listed_sizes()
        problems = [p for p in _parallel(lambda i: self._size_problem(i, listed), range(len(self.paths))) if p]
        if problems:
            more = f"\n       and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(
                f"shards: {len(problems)} of {len(self.paths)} differ from their manifest:\n       "
                + "\n       ".join(problems[:5]) + more
                + "\n       Copy them again, or pack them again; verify with: python make_shards.py verify=SHARDS"
            )  # fmt: skip

    def _listed_sizes(self) -> dict[str, int]:
        """Returns the sizes in bytes of the shards in buckets; one request lists a thousand of them."""
        listed: dict[str, int] = {}
        for folder in {parent(path) for path in self.paths if is_remote(path) and not path.startswith("http")}:
            assert self.store is not None
            with contextlib.suppress(RemoteError):  # users with permission to read may lack permission to list
                listed |= self.store.sizes(folder)
        return listed

    def _size_problem(self, shard: int, listed: dict[str, int]) -> str | None:
        path, expected = self.paths[shard], int(self.num_bytes[shard])
        try:
            if is_remote(path):
                assert self.store is not None
                size, start = listed.get(path) or self.store.size(path), b""
            else:
                size = os.path.getsize(path)
                with open(path, "rb") as file:
                    start = file.read(256) if size != expected else b""
        except (OSError, RemoteError) as error:
            return f"{path}: {error}"
        html = b"<html" in start.lower() or b"<!doctype html" in start.lower()
        return f"{path}: expected {expected} bytes, got {size}{' of an HTML page' * html}" if size != expected else None

    def index(self, shard: int) -> ShardIndex:
        """Returns a shard's index; the most recently used ones are cached."""
        index = self._indexes.pop(shard, None) or load_index(
            self.paths[shard], self.store, int(self.num_bytes[shard]), self.audio_member, not self.versions[shard]
        )
        self._indexes[shard] = index  # moved to the end of the dict: most recently used
        while len(self._indexes) > 1 and sum(len(kept.keys) for kept in self._indexes.values()) > _KEPT_CLIPS:
            del self._indexes[next(iter(self._indexes))]
        return index

    def _map(self, shard: int) -> memoryview:
        memory = self._maps.pop(shard, None)
        if memory is None:
            with open(self.paths[shard], "rb") as f:
                memory = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
            if len(self._maps) >= _KEPT_MAPS:
                del self._maps[next(iter(self._maps))]
        self._maps[shard] = memory
        return memory

    def member(self, shard: int, place: Place, sha256: str = "") -> memoryview | BinaryIO:
        """Returns the bytes of a member: memory, or, for a large remote one, a file that fetches the parts it reads."""
        (offset, size), path = place, self.paths[shard]
        if not is_remote(path):
            return self._map(shard)[offset : offset + size]
        assert self.store is not None
        seal = self._seal(shard, sha256)
        if size > self.store.block_bytes:
            return self.store.open(path, offset, offset + size, seal)
        return memoryview(self.store.read(path, offset, offset + size, seal))

    def _seal(self, shard: int, sha256: str) -> str:
        """Returns the seal that distinguishes a remote member's bytes from those of other versions of the shard."""
        return sha256 or version_seal(self.versions[shard] or self.index(shard).etag)

    def whole_members(self, shard: int, clip: int, fields: Sequence[str]) -> list[tuple[str, int, int, str]]:
        """Returns the ranges (URL, start, stop, sha256) that ``member`` will fetch for a remote clip."""
        path = self.paths[shard]
        if not is_remote(path):
            return []
        index = self.index(shard)
        places = [(index.audio[clip], index.sha256[clip])]
        places += [(index.fields[name][clip], "") for name in fields if name in index.fields]
        assert self.store is not None
        limit = self.store.block_bytes
        return [(path, at, at + size, self._seal(shard, sha)) for (at, size), sha in places if 0 < size <= limit]


def _check_choices(built: Sequence[ShardIndex], audio_member: str | None) -> None:
    """Raises ValueError if clips have several audio members and none is selected, or if no clip has the selected."""
    found = sum((Counter(index.choices) for index in built), Counter())
    num_clips = sum(len(index.keys) for index in built)
    endings = ", ".join(sorted(found))
    if audio_member and not num_clips:
        raise ValueError(
            f"audio_member: expected one that clips have ({endings or 'there are none'}), got {audio_member}"
        )
    if not audio_member and found and max(found.values()) > _FEW * num_clips:
        raise ValueError(
            f"shards: expected one audio member for each clip of {built[0].path}, found several ({endings}); select "
            f"one by its ending: data.reading.audio_member={min(found)}"
        )


def _check_manifests(patterns: Sequence[str], paths: Sequence[str], listed: dict[str, dict]) -> None:
    """Raises ValueError if a folder lacks training shards that its manifest lists."""
    for folder in filter(None, map(folder_of, patterns)):
        expected = [path for path, shard in listed.items() if parent(path) == folder and shard.get("split") == "train"]
        if missing := sorted(set(expected) - set(paths)):
            raise ValueError(
                f"shards: the manifest of {folder!r} lists {len(expected)} training shards, but {missing[0]!r} does "
                f"not exist" + (f" (nor do {len(missing) - 1} more)" if len(missing) > 1 else "") + ". Copy them again"
            )


def load_index(
    path: str,
    store: RemoteStore | None,
    num_bytes: int | None = None,
    audio_member: str | None = None,
    with_etag: bool = True,
) -> ShardIndex:
    """Returns a shard's index: the one beside it, or one that is built at first use and cached.

    Args:
        path: path or URL of the shard.
        store: store for URLs.
        num_bytes: size of the shard, if known; a cached index of a shard with another size is ignored.
        audio_member: ending of the members that are the clips' audio.
        with_etag: whether to request the version of a remote shard from its server.
    """
    if not is_remote(path):
        return indexes.load_index(path, audio_member)
    assert store is not None
    if audio_member:
        return _index_foreign(path, store, audio_member)
    for cache in (True, False):
        try:
            index = indexes.loads(store.read(indexes.index_path(path), cache=cache), path)
        except ValueError:
            continue
        except RemoteError as error:
            if error.kind not in ("not_found", "forbidden"):
                raise
            break
        if num_bytes is None or index.num_bytes == num_bytes:
            return replace(index, etag=store.stat(path).etag) if with_etag else index
    return _index_foreign(path, store)


def _index_foreign(path: str, store: RemoteStore, audio_member: str | None = None) -> ShardIndex:
    """Builds the index of a remote shard that has none beside it from its headers; it is stored in the cache folder."""
    stat, cached = store.stat(path), None
    size = stat.size
    if store.cache_dir:
        name = hashlib.sha256(f"{path} {audio_member}".encode() if audio_member else path.encode()).hexdigest()
        cached = Path(store.cache_dir) / "indexes" / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):
            index = indexes.loads(cached.read_bytes(), path)
            if (index.num_bytes, index.etag) == (size, stat.etag):
                return index
    file = store.open(path, 0, size, version_seal(stat.etag))
    index = replace(indexes.scan(file, path, size, with_json=False, audio_member=audio_member), etag=stat.etag)
    if cached:
        cached.parent.mkdir(parents=True, exist_ok=True)
        indexes.write_atomic(cached, indexes.dumps(index))
    return index
