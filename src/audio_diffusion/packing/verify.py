"""Verification of shards: reads all of them and compares them with the manifest, the indexes and the json files."""

import hashlib
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from audio_diffusion.checkpoints.files import blocks_of, sha256_of
from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.audio.reading import UnusableAudio, check
from audio_diffusion.data.remote import RemoteError, RemoteStore, is_remote, local_path
from audio_diffusion.data.shards import index as indexes
from audio_diffusion.data.shards.find import MANIFEST, join, read_manifest
from audio_diffusion.data.shards.index import ShardIndex, index_path
from audio_diffusion.data.shards.members import MAX_JSON_BYTES, READERS
from audio_diffusion.packing.journal import PLAN
from audio_diffusion.packing.parallel import ordered
from audio_diffusion.packing.shard_writer import WORK

_BLOCK = 1 << 20  # bytes read at once


@dataclass
class Verified:
    """Result of ``verify``; each problem has the form ``shard: clip: what was expected, what was found``."""

    num_shards: int = 0
    num_clips: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass
class _Found:
    """Result for one shard: its split, problems, (key, source) of its clips, their seconds and labels."""

    name: str
    split: str
    problems: list[str] = field(default_factory=list)
    clips: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    labels: Counter[str] = field(default_factory=Counter)

    def say(self, problem: str, key: str = "") -> None:
        self.problems.append(f"{self.name}: {f'{key}: ' if key else ''}{problem}")

    def expect(self, what: str, expected: Any, found: Any, key: str = "") -> None:
        if expected != found:
            self.say(f"{what}: expected {expected}, found {found}", key)


def verify(
    place: str,
    num_workers: int = 1,
    store: RemoteStore | None = None,
    progress: Callable[[int, int, float, float], None] = lambda *counts: None,
) -> Verified:
    """Reads all shards of a folder, local or a URL: sizes and hashes against the manifest, indexes against the tars,
    every clip's hash, json and complete audio; checks that no clip occurs twice and no source is in two splits.

    Args:
        place: the folder.
        num_workers: number of processes that read shards.
        store: access to URLs.
        progress: called with (shards done, all shards, seconds done, all seconds).

    Raises:
        ValueError: if there are no shards.
    """
    store, result = store or RemoteStore(None), Verified()
    folder = place.rstrip("/") if is_remote(place) else local_path(place)
    manifest: dict[str, Any] = {}
    try:
        manifest = read_manifest(folder, store)
        if not manifest:
            result.problems.append(f"{MANIFEST}: expected the manifest of make_shards.py, found none")
    except ValueError as error:
        result.problems.append(f"{MANIFEST}: expected json, found something else ({error})")
    present, listed = _present(folder, store), {shard["name"]: shard for shard in manifest.get("shards", [])}
    names = sorted({*(present or listed), *listed})
    if not names:
        raise ValueError(f"verify: expected a folder of shards, local or a URL, got {redacted_url(place)!r}")
    if not is_remote(folder) and (Path(folder) / WORK / PLAN).exists():
        result.problems.append(f"{WORK}: the run that writes these shards is not finished: repeat its command")
    jobs = [(name, listed.get(name), bool(manifest), present is None or name in present) for name in names]
    all_seconds, found = sum(manifest.get("seconds", {}).values()), []
    for one in ordered(partial(_verify_shard, folder, store), jobs, num_workers):
        found.append(one)
        result.problems += one.problems
        result.num_clips += len(one.clips)
        result.seconds += one.seconds
        progress(len(found), len(jobs), result.seconds, max(all_seconds, result.seconds))
    result.num_shards = len(found)
    result.problems += [
        *_across(found, set(manifest.get("stretches", []))),
        *(_against(manifest, found) if manifest else []),
    ]
    return result


def _present(folder: str, store: RemoteStore) -> set[str] | None:
    """Returns the names of the shards in a folder; None if it cannot be listed, as on many web servers."""
    if not is_remote(folder):
        return {path.name for path in Path(folder).glob("*.tar")}
    try:
        return {url.rpartition("/")[2] for url in store.list(folder) if url.endswith(".tar")}
    except RemoteError as error:
        if error.kind in ("stalled", "timeout", "connection", "server"):
            raise ValueError(f"verify: {error}") from error
        return None


def _verify_shard(folder: str, store: RemoteStore, job: tuple[str, dict | None, bool, bool]) -> _Found:
    """Verifies one shard against its entry in the manifest, its index, and its own json files."""
    name, listed, has_manifest, is_present = job
    found = _Found(name, listed["split"] if listed else name.partition("-")[0])
    if not is_present:
        found.say("expected, as the manifest lists it, found no such file")
        return found
    if has_manifest and listed is None:
        found.say("expected only what the manifest lists, found this shard too")
    try:
        with _local(join(folder, name), store) as path:
            _read_shard(found, path, listed)
            built = _scan(path)
            _compare_index(found, _index_text(join(folder, name), store), built)
            _check_clips(found, path, built, needs_json=listed is not None)
    except (OSError, RemoteError) as error:
        found.say(f"expected a file that can be read, found: {error}")
    if listed:
        found.expect("clips", listed["clips"], len(found.clips))
    return found


@contextmanager
def _local(path: str, store: RemoteStore) -> Iterator[str]:
    """Yields a shard as a local file; a remote one is downloaded, and the copy removed afterwards."""
    if not is_remote(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as copy:
        with store.open(path, 0, store.size(path)) as file:
            while block := file.read(_BLOCK):
                copy.write(block)
        copy.flush()
        yield copy.name


def _read_shard(found: _Found, path: str, listed: dict | None) -> None:
    """Compares size and hash of the shard with the manifest."""
    if listed is None:
        return
    found.expect("size in bytes", listed["bytes"], os.path.getsize(path))
    found.expect("sha256 of the shard", listed["sha256"], sha256_of(blocks_of(Path(path))))


def _scan(path: str) -> ShardIndex:
    with open(path, "rb") as file:
        return indexes.scan(cast(BinaryIO, file), path, os.path.getsize(path))


def _index_text(path: str, store: RemoteStore) -> bytes | None:
    """Reads the index beside a shard; None if there is none."""
    place = index_path(path)
    try:
        return store.read(place, cache=False) if is_remote(place) else Path(place).read_bytes()
    except FileNotFoundError:
        return None
    except RemoteError as error:
        if error.kind not in ("not_found", "forbidden"):
            raise
        return None


def _compare_index(found: _Found, text: bytes | None, built: ShardIndex) -> None:
    """Compares the index beside the shard with one built from the shard."""
    if text is None:
        found.say("its index: expected beside it, found none")
        return
    try:
        index = indexes.loads(text, built.path)
    except ValueError as error:
        found.say(f"its index: expected one that can be read, found: {error}")
        return
    found.expect("its index: size of the shard", built.num_bytes, index.num_bytes)
    if index.keys != built.keys:
        for key in sorted(set(index.keys) ^ set(built.keys)):
            in_tar = key in built.keys
            found.say(f"expected in the tar and in its index, found only in the {'tar' if in_tar else 'index'}", key)
        if sorted(index.keys) == sorted(built.keys):
            found.say("its index: expected the clips in the order of the tar, found another")
        return
    for i, key in enumerate(built.keys):
        found.expect("its index: (offset, size)", tuple(built.audio[i]), tuple(index.audio[i]), key)
        for column in ("frames", "sample_rate", "channels", "sha256"):
            found.expect(f"its index: {column}", getattr(built, column)[i], getattr(index, column)[i], key)
        for ending, places in built.fields.items():
            stored = index.fields.get(ending, [(0, 0)] * len(built.keys))
            found.expect(f"its index: place of {ending}", tuple(places[i]), tuple(stored[i]), key)


def _check_clips(found: _Found, path: str, built: ShardIndex, needs_json: bool) -> None:
    """Checks the json and the hash of every clip, and decodes its audio to the end."""
    for name, kind, reason in built.refused:
        found.say(f"expected a member that can be used, found: {reason} ({kind})", name)
    if not built.num_bytes:
        return
    with open(path, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for i, key in enumerate(built.keys):
        meta = _check_fields(found, memory, built, i, needs_json)
        _check_audio(found, memory, built, i, needs_json)
        found.clips.append((key, str(meta.get("source", ""))))
        found.seconds += built.frames[i] / (built.sample_rate[i] or 1)
        found.labels.update([meta["label"]] if isinstance(meta.get("label"), str) else [])


def _check_fields(found: _Found, memory: memoryview, built: ShardIndex, i: int, needs_json: bool) -> dict[str, Any]:
    """Checks the members beside a clip's audio; returns the content of its json."""
    meta: dict[str, Any] = {}
    for ending, places in built.fields.items():
        offset, size = places[i]
        if not size:
            continue
        try:
            stored = READERS[ending.rpartition(".")[2]](memory[offset : offset + size])
            meta = stored if ending == "json" and isinstance(stored, dict) else meta
        except ValueError as error:
            found.say(f"expected {ending} of at most {MAX_JSON_BYTES} bytes that can be read, found: {error}",
                      built.keys[i])  # fmt: skip
    if needs_json and built.fields.get("json", [(0, 0)] * (i + 1))[i] == (0, 0):
        found.say("expected a json, found none", built.keys[i])
    return meta


def _check_audio(found: _Found, memory: memoryview, built: ShardIndex, i: int, is_ours: bool) -> None:
    key, (offset, size) = built.keys[i], built.audio[i]
    data = memory[offset : offset + size]
    if built.sha256[i] or is_ours:
        found.expect("sha256 of the audio", built.sha256[i] or "one in the json", hashlib.sha256(data).hexdigest(), key)
    try:
        info = check(data, max_missing=1.0)
    except UnusableAudio as error:
        found.say(f"expected audio that decodes to its end, found: {error}", key)
        return
    if info.missing and not is_ours:
        found.say(f"expected audio that decodes to its end, found: {info.missing}", key)
    for column in ("frames", "sample_rate", "channels"):
        if (stored := getattr(built, column)[i]) or is_ours:
            found.expect(f"{column} in the json", getattr(info, column), stored or "none", key)


def _across(found: list[_Found], stretches: set[str]) -> Iterator[str]:
    """Yields problems across shards: duplicate clips, and sources in two splits that are not in ``stretches``."""
    shard_of: dict[str, str] = {}
    split_of: dict[str, tuple[str, str]] = {}
    for one in found:
        for key, source in one.clips:
            if (other := shard_of.setdefault(key, one.name)) != one.name:
                yield f"{one.name}: {key}: expected once in the data set, found in {other} too"
            split, first = split_of.setdefault(source, (one.split, one.name)) if source else (one.split, "")
            if split != one.split and source not in stretches:
                yield (
                    f"{one.name}: {key}: expected all of {source!r} in one split, found it in {split} ({first}) and in "
                    f"{one.split}"
                )


def _against(manifest: dict[str, Any], found: list[_Found]) -> Iterator[str]:
    """Yields differences between the totals of the manifest and those of the shards."""
    for split in ("train", "val", "test"):
        clips = sum(len(one.clips) for one in found if one.split == split)
        seconds = sum(one.seconds for one in found if one.split == split)
        told_clips, told_seconds = (manifest.get(name, {}).get(split, 0) for name in ("clips", "seconds"))
        if clips != told_clips:
            yield f"{MANIFEST}: clips of {split}: expected {told_clips}, found {clips}"
        if abs(seconds - told_seconds) > 0.01 + 1e-9 * seconds:
            yield f"{MANIFEST}: seconds of {split}: expected {told_seconds:.3f}, found {seconds:.3f}"
    labels = sum((one.labels for one in found), Counter())
    for label in sorted({*labels, *manifest.get("labels", {})}):
        if (stored := manifest.get("labels", {}).get(label, 0)) != labels[label]:
            yield f"{MANIFEST}: clips with the label {label!r}: expected {stored}, found {labels[label]}"
