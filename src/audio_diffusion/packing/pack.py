"""Folder of audio -> shards, indexes and a manifest. Encoded bytes are kept as they are."""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import webdataset as wds

from audio_diffusion.data.audio import EXTENSIONS, AudioInfo, UnusableAudio, check
from audio_diffusion.data.index import write_atomic, write_index
from audio_diffusion.data.shards import MANIFEST

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Source:
    """One file to pack: where it lies, its name relative to the input folder, and what is known of it."""

    path: Path
    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of the name: decides order and split, so adding files never moves others between splits."""
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()  # not every file's name is UTF-8

    @property
    def key(self) -> str:
        """Unique in the data set, free of dots and of anything a tar or WebDataset reads differently."""
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(self.name).stem)[:60]}_{self.digest[:12]}"


@dataclass
class PackReport:
    """What was packed, by split, and what was refused: (file, reason)."""

    clips: dict[str, int]
    seconds: dict[str, float]
    classes: list[str]
    shards: list[dict[str, Any]]
    refused: list[tuple[str, str]]


def scan_folder(folder: Path, label_from_folder: bool) -> list[Source]:
    """All audio files below a folder (hidden ones left out); the label is the sub-folder directly below it.

    Raises:
        ValueError: if there is no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise ValueError(f"input: expected a folder of audio, got {str(folder)!r}")
    sources = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.suffix.lower().lstrip(".") in EXTENSIONS and path.is_file() and not hidden:
            labelled = label_from_folder and len(relative.parts) > 1
            sources.append(Source(path, relative.as_posix(), {"label": relative.parts[0]} if labelled else {}))
    if not sources:
        raise ValueError(f"input: no audio ({', '.join(EXTENSIONS)}) below {str(folder)!r}")
    return sources


def scan_manifest(folder: Path, manifest: Path) -> list[Source]:
    """The files a csv names in its column ``file`` or ``path`` (relative to the folder); its other columns are kept.

    Raises:
        ValueError: if the csv lacks that column, or a line names no file, one twice, or one outside the folder.
    """
    with open(manifest, newline="", encoding="utf-8-sig") as f:  # spreadsheets write the signature
        reader = csv.DictReader(f)
        column = next((c for c in ("file", "path") if c in (reader.fieldnames or [])), None)
        if column is None:
            raise ValueError(f"manifest: expected a column file or path in {manifest}, got {reader.fieldnames}")
        rows = list(reader)
    root, sources, seen = folder.resolve(), [], set()
    for number, row in enumerate(rows, 2):
        name = row.pop(column)
        if not name:
            raise ValueError(f"manifest: line {number} of {manifest} names no file")
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"manifest: line {number} of {manifest} names {path}, which is outside {root}")
        if path in seen:
            raise ValueError(f"manifest: line {number} of {manifest} names {path} a second time")
        seen.add(path)
        sources.append(Source(path, path.relative_to(root).as_posix(), {k: v for k, v in row.items() if k and v}))
    return sources


def split_of(source: Source, val_fraction: float) -> str:
    """train, val or test: as its manifest says, else by the hash of its name.

    Raises:
        ValueError: for a split of another name.
    """
    named = source.fields.get("split")
    if named is None:
        return "val" if int(source.digest[:8], 16) < val_fraction * 2**32 else "train"
    if named not in SPLITS:
        raise ValueError(f"manifest: split of {source.name}: expected {', '.join(SPLITS)}, got {named!r}")
    return SPLITS[named]


def _check(source: Source) -> AudioInfo | str:
    if source.path.suffix.lower().lstrip(".") not in EXTENSIONS:
        return f"its name ends in none of {', '.join(EXTENSIONS)}"
    try:
        return check(source.path)
    except (UnusableAudio, OSError) as error:
        return str(error)


def _members(source: Source, info: AudioInfo) -> dict[str, Any]:
    meta = {k: v for k, v in source.fields.items() if k != "split"}
    meta |= {
        "source": source.name,
        "frames": info.frames,
        "sample_rate": info.sample_rate,
        "channels": info.channels,
    }
    extension = source.path.suffix.lower().lstrip(".")
    return {"__key__": source.key, extension: source.path.read_bytes(), "json": json.dumps(meta).encode()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_shards(
    output: Path, split: str, clips: Iterator[tuple[Source, AudioInfo]], shard_bytes: int
) -> Iterator[dict[str, Any]]:
    """Writes one split's shards, each under a temporary name until it is whole."""
    writer: wds.TarWriter | None = None
    count = written = number = 0
    temporary = output / f".{split}.tar.part"

    def close() -> dict[str, Any]:
        assert writer is not None
        writer.close()
        path = output / f"{split}-{number:06d}.tar"
        temporary.replace(path)
        write_index(path)
        return {"name": path.name, "clips": count, "bytes": path.stat().st_size, "sha256": _sha256(path)}

    for source, info in clips:
        if writer is None:
            writer = wds.TarWriter(str(temporary), mtime=0)
            count = written = 0
        written += writer.write(_members(source, info))
        count += 1
        if written >= shard_bytes:
            yield close()
            writer, number = None, number + 1
    if writer is not None:
        yield close()


def pack(
    sources: list[Source],
    output: Path,
    *,
    val_fraction: float = 0.1,
    shard_bytes: int = 100_000_000,
    num_workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackReport:
    """Checks every file (decoded to its end), and writes shards, indexes, ``manifest.json`` and ``refused.csv``.

    The same input gives the same bytes. Clips stand in the order of a hash of their names, so every shard holds a
    mixture.

    Args:
        sources: what to pack.
        output: folder for the shards; it must hold none yet.
        val_fraction: share held out, by hash of the name, of files whose split no manifest names.
        shard_bytes: a shard is closed once it holds this much.
        num_workers: processes that decode.
        progress: told (files checked, files in all).

    Raises:
        ValueError: if the output holds shards, a number is out of range, or no clip is left to train on or held out.
    """
    if list(output.glob("*.tar")):
        raise ValueError(f"output: {str(output)!r} already holds shards; remove them or choose another folder")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction: expected between 0 and 1, got {val_fraction}")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes: expected at least 1, got {shard_bytes}")
    sources = sorted(sources, key=lambda source: source.digest)
    splits: dict[str, list[tuple[Source, AudioInfo]]] = {"train": [], "val": [], "test": []}
    refused = []
    with ProcessPoolExecutor(num_workers) as pool:
        for done, (source, result) in enumerate(zip(sources, pool.map(_check, sources, chunksize=8), strict=True), 1):
            if isinstance(result, str):
                refused.append((source.name, result))
            else:
                splits[split_of(source, val_fraction)].append((source, result))
            progress(done, len(sources))
    for split in ("train", "val"):
        if not splits[split]:
            raise ValueError(
                f"input: of {len(sources)} files ({len(refused)} refused) none is left for {split}; "
                "give more files, another val_fraction, or a manifest with a column split"
            )
    output.mkdir(parents=True, exist_ok=True)
    shards = [
        {"split": split, **shard}
        for split, clips in splits.items()
        for shard in _write_shards(output, split, iter(clips), shard_bytes)
    ]
    labels: Counter[Any] = Counter(source.fields.get("label") for clips in splits.values() for source, _ in clips)
    report = PackReport(
        clips={split: len(clips) for split, clips in splits.items()},
        seconds={split: round(sum(info.duration_s for _, info in clips), 3) for split, clips in splits.items()},
        classes=sorted(labels) if None not in labels else [],
        shards=shards,
        refused=refused,
    )
    with open(output / "refused.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
        csv.writer(f).writerows([("file", "reason"), *refused])
    write_atomic(output / MANIFEST, json.dumps({"version": 1, **asdict(report), "labels": labels}, indent=1))
    return report
