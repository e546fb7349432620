"""Finds shards by folder, glob or brace pattern, and reads their manifests."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape, glob, has_magic
from pathlib import Path

import webdataset as wds

from audio_diffusion.data.remote import RemoteError, RemoteStore, is_remote
from audio_diffusion.data.shards import advice

MANIFEST, HELD_OUT = "manifest.json", "val-*.tar"


def folder_of(pattern: str) -> str | None:
    """Returns the pattern if it is a folder, local or remote; None for a pattern of shards."""
    if is_remote(pattern):
        return None if pattern.endswith(".tar") or has_magic(pattern) or "{" in pattern else pattern.rstrip("/")
    return pattern if Path(pattern).is_dir() else None


def parent(path: str) -> str:
    return path.rpartition("/")[0] if is_remote(path) else str(Path(path).parent)


def join(folder: str, name: str) -> str:
    """Returns the path or URL of a file in a folder."""
    return f"{folder}/{name}" if is_remote(folder) else str(Path(folder) / name)


def read_manifest(folder: str, store: RemoteStore | None = None) -> dict:
    """Reads the manifest.json of a folder of shards; empty if there is none written by make_shards.py."""
    path = join(folder, MANIFEST)
    try:
        text = (store or RemoteStore(None)).read(path, cache=False) if is_remote(path) else Path(path).read_bytes()
    except OSError:
        return {}
    except RemoteError as error:
        # without permission to list, S3 answers "forbidden" for an absent object
        if error.kind not in ("not_found", "forbidden"):
            raise
        return {}
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ValueError(f"shards: {path} is not json: {error}") from error
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("shards"), list) else {}


def expand(pattern: str, store: RemoteStore | None = None) -> list[str]:
    """Returns the sorted shards of a folder (its train-*.tar), a glob or a brace pattern (``s/train-{000..127}.tar``).

    The manifest of a remote folder lists its shards; without a manifest the folder itself is listed.

    Raises:
        ValueError: if nothing matches, or a local shard of a brace pattern is missing.
    """
    given = pattern
    if folder := folder_of(pattern):
        pattern = join(folder if is_remote(folder) else escape(folder), "train-*.tar")
    if is_remote(pattern):
        paths = _expand_remote(pattern, store or RemoteStore(None))
        missing = []
    else:
        paths = sorted(glob(pattern)) if has_magic(pattern) and "{" not in pattern else []
        paths = paths or [p for part in wds.shardlists.expand_urls(pattern) for p in (sorted(glob(part)) or [part])]
        missing = [path for path in paths if not Path(path).is_file()]
    if missing or not paths:
        raise ValueError(
            f"shards: expected files at {pattern!r}, but "
            + (f"{missing[0]!r} does not exist" if missing else "there are none")
            + (f" (nor do {len(missing) - 1} more)" if len(missing) > 1 else "")
            + f". {advice.instead_of_shards(folder, _names_in(folder, store)) if folder else advice.MAKE_THEM}"
        )
    if sounds := [path for path in paths if advice.is_sound(path)]:
        wanted = given if given == sounds[0] else parent(sounds[0])
        raise ValueError(f"shards: expected .tar files, but {sounds[0]!r} is an audio file. {advice.pack(wanted)}")
    return paths


def _names_in(folder: str, store: RemoteStore | None) -> list[str]:
    """Returns the names in a folder, or those of the shards in a remote one; empty if it cannot be listed."""
    with contextlib.suppress(RemoteError, OSError):
        if not is_remote(folder):
            return sorted(os.listdir(folder))
        return [path.rpartition("/")[2] for path in (store or RemoteStore(None)).list(join(folder, "*.tar"))]
    return []


def _expand_remote(pattern: str, store: RemoteStore) -> list[str]:
    if "{" in pattern:
        return list(wds.shardlists.expand_urls(pattern))
    if "*" not in pattern:
        return [pattern]
    folder, _, names = pattern.rpartition("/")
    listed = [shard["name"] for shard in read_manifest(folder, store).get("shards", [])]
    if listed:
        return sorted(join(folder, name) for name in listed if fnmatchcase(name, names))
    return store.list(pattern)


def by_name(patterns: str | Mapping[str, str]) -> dict[str, str]:
    """Returns data sets by name; a single one without a name is called train."""
    return {"train": patterns} if isinstance(patterns, str) else dict(patterns)


def held_out(train: str | Mapping[str, str], val: str | Mapping[str, str] | None) -> dict[str, str]:
    """Returns the patterns of the held-out shards: ``val``, or else the val-*.tar beside the training shards."""
    return by_name(val) if val else {name: _held_out(pattern) for name, pattern in by_name(train).items()}


def _held_out(pattern: str) -> str:
    folder = folder_of(pattern)
    if folder and not is_remote(folder):
        folder = escape(folder)  # a folder may have brackets in its name
    return join(folder or parent(wds.shardlists.expand_urls(pattern)[0]), HELD_OUT)


def find_held_out(
    train: str | Mapping[str, str], val: str | Mapping[str, str] | None, store: RemoteStore | None = None
) -> dict[str, str]:
    """Returns the patterns of the held-out shards, like ``held_out``, without data sets that hold out nothing (there is
    no ``val-*.tar`` beside their training shards or in their manifest). The shards of ``val`` must exist.

    Raises:
        RemoteError: if a server cannot list its shards.
    """
    patterns = held_out(train, val)
    if val:
        return patterns
    return {name: patterns[name] for name, pattern in by_name(train).items() if _holds_out(pattern, store)}


def _holds_out(pattern: str, store: RemoteStore | None) -> bool:
    folder = folder_of(pattern) or parent(wds.shardlists.expand_urls(pattern)[0])
    if listed := read_manifest(folder, store).get("shards"):
        return any(fnmatchcase(shard["name"], HELD_OUT) for shard in listed)
    if is_remote(folder):
        try:
            return bool((store or RemoteStore(None)).list(join(folder, HELD_OUT)))
        except RemoteError as error:
            if error.kind not in ("not_found", "forbidden"):  # many web servers cannot list folders
                raise
            return False
    return bool(glob(join(escape(folder), HELD_OUT)))


def read_classes(patterns: Sequence[str], store: RemoteStore | None = None) -> list[str]:
    """Returns the class names in the manifests beside the shards; empty if one of them has no manifest or no label."""
    classes: set[str] = set()
    for pattern in patterns:
        of_one = read_manifest(parent(expand(pattern, store)[0]), store).get("classes") or []
        if not of_one:
            return []
        classes.update(of_one)
    return sorted(classes)


def describe_manifests(patterns: Mapping[str, str], store: RemoteStore | None) -> dict[str, dict]:
    """Identifies the version of each data set: its folder, clips, seconds and a hash of its manifest."""
    described = {}
    for name, pattern in patterns.items():
        manifest = read_manifest(parent(expand(pattern, store)[0]), store)
        text = json.dumps(manifest, sort_keys=True).encode()
        known = {key: manifest[key] for key in ("clips", "seconds") if key in manifest}
        described[name] = {"shards": pattern, **known, "manifest_sha256": hashlib.sha256(text).hexdigest()}
    return described
