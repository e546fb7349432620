"""What is there to pack: the files below a folder or that a manifest names, and what is known of each."""

import csv
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from audio_diffusion.data.audio import EXTENSIONS
from audio_diffusion.data.members import read_json
from audio_diffusion.data.remote import RemoteError, RemoteStore, is_remote, redact

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_READING = 16  # threads that read sidecars


@dataclass(frozen=True)
class Source:
    """One file to pack: where it lies (a URL if it is text), its name relative to the input, what is known of it, and
    the reason if it is refused already."""

    path: Path | str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def digest(self) -> str:
        """Hash of the name: decides order and split, so adding files never moves others between splits."""
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()  # not every file's name is UTF-8

    @property
    def key(self) -> str:
        """Unique in the data set, free of dots and of anything a tar or WebDataset reads differently."""
        stem = self.name.rpartition("/")[2].rpartition(".")[0]
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:60]}_{self.digest[:12]}"

    @property
    def ending(self) -> str:
        """What follows the last dot of its name, in small letters."""
        return _ending(self.name)


def split_of(source: Source, val_fraction: float) -> str:
    """train, val or test: as its manifest or sidecar says, else by the hash of its name.

    Raises:
        ValueError: for a split of another name.
    """
    named = source.fields.get("split")
    if named is None:
        return "val" if int(source.digest[:8], 16) < val_fraction * 2**32 else "train"
    if named not in SPLITS:
        raise ValueError(f"manifest: split of {source.name}: expected {', '.join(SPLITS)}, got {named!r}")
    return SPLITS[named]


def scan_folder(folder: Path, label_from_folder: bool) -> list[Source]:
    """All audio files below a folder. Links to folders are followed; hidden folders are not entered, and a source that
    is refused stands for those with audio in them.

    The label is the sub-folder directly below the folder. Beside ``x.wav`` a ``x.json`` may tell more, or better.

    Raises:
        ValueError: if there is no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise ValueError(f"input: expected a folder of audio, got {str(folder)!r}")
    names = sorted(_walk(str(folder), "", ()))
    hidden = {_hidden_folder(name) for name in names if _ending(name) in EXTENSIONS} - {""}
    known = set(names)

    def described(name: str) -> Source:
        sidecar = f"{name.rpartition('.')[0]}.json"
        data = (folder / sidecar).read_bytes if sidecar in known else None
        return _described(folder / name, name, label_from_folder, sidecar, data)

    sources = [described(name) for name in names if _ending(name) in EXTENSIONS and not _hidden_folder(name)]
    if not sources:
        raise ValueError(f"input: no audio ({', '.join(EXTENSIONS)}) below {str(folder)!r}")
    return sources + [Source(folder / name, name, {}, "a hidden folder: not searched") for name in sorted(hidden)]


def scan_url(url: str, label_from_folder: bool, store: RemoteStore) -> list[Source]:
    """All audio below a folder of a bucket or web server, as ``scan_folder`` finds it in a local one.

    Raises:
        ValueError: if it cannot be listed, or holds no audio.
    """
    url = url.rstrip("/")
    try:
        listed = {_below(url, address): address for address in store.list(url, recursive=True)}
    except RemoteError as error:
        raise ValueError(f"input: {error}") from error

    def described(name: str) -> Source:
        sidecar = f"{name.rpartition('.')[0]}.json"
        data = (lambda: store.read(listed[sidecar], cache=False)) if sidecar in listed else None
        return _described(listed[name], name, label_from_folder, sidecar, data)

    audio = [name for name in sorted(listed) if _ending(name) in EXTENSIONS]
    hidden = {_hidden_folder(name) for name in audio} - {""}
    with ThreadPoolExecutor(_READING) as pool:
        sources = list(pool.map(described, [name for name in audio if not _hidden_folder(name)]))
    if not sources:
        raise ValueError(f"input: no audio ({', '.join(EXTENSIONS)}) below {redact(url)!r}")
    return sources + [Source(f"{url}/{name}", name, {}, "a hidden folder: not searched") for name in sorted(hidden)]


def scan_manifest(folder: Path | str, manifest: Path | str, store: RemoteStore | None = None) -> list[Source]:
    """The files that a csv or jsonl names as ``file`` or ``path``, relative to the folder; all else it says is kept.

    Values of a jsonl keep their types. Without a line of its own no file is packed; sidecars are not read.

    Args:
        folder: the input, local or a URL; rows may name URLs below it.
        manifest: local or a URL.
        store: for URLs.

    Raises:
        ValueError: if the manifest cannot be read, or a line names no file, one twice, or one outside the folder.
    """
    if isinstance(manifest, str) and is_remote(manifest):
        try:
            text = (store or RemoteStore(None)).read(manifest, cache=False).decode("utf-8-sig")
        except RemoteError as error:
            raise ValueError(f"manifest: {error}") from error
    else:
        text = Path(manifest).read_text(encoding="utf-8-sig")  # spreadsheets write the signature
    shown, sources, seen = redact(str(manifest)), [], set()
    rows = _jsonl_rows(text, shown) if str(manifest).endswith((".jsonl", ".ndjson")) else _csv_rows(text, shown)
    for number, row in rows:
        column = "file" if "file" in row else "path"
        name = row.pop(column, None)
        where = f"manifest: line {number} of {shown}"
        if not name or not isinstance(name, str):
            raise ValueError(f"{where} names no file")
        source = _named(folder, name, where)
        if source.name in seen:
            raise ValueError(f"{where} names {source.path} a second time")
        seen.add(source.name)
        sources.append(Source(source.path, source.name, _fields(row, where)))
    if not sources:
        raise ValueError(f"manifest: {shown} names no files")
    return sources


def _csv_rows(text: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a csv; empty values are left out."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not {"file", "path"} & set(reader.fieldnames or []):
        raise ValueError(f"manifest: expected a column file or path in {shown}, got {reader.fieldnames}")
    for row in reader:
        yield reader.line_num, {key: value for key, value in row.items() if key and value}


def _jsonl_rows(text: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a jsonl; nulls are left out."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = read_json(line.encode())
            except ValueError as error:
                raise ValueError(f"manifest: line {number} of {shown}: {error}") from error
            yield number, {key: value for key, value in row.items() if value is not None}


def _named(folder: Path | str, name: str, where: str) -> Source:
    """The file that a manifest's row names.

    Raises:
        ValueError: if it lies outside the folder.
    """
    if isinstance(folder, str) and is_remote(folder):
        root = folder.rstrip("/")
        inner = name[len(root) + 1 :] if name.startswith(root + "/") else name
        inner = posixpath.normpath(inner)
        if (
            ("://" in name and not name.startswith(root + "/"))
            or inner.startswith(("../", "/"))
            or inner in ("..", ".")
        ):
            raise ValueError(f"{where} names {redact(name)}, which is outside {redact(root)}")
        return Source(f"{root}/{inner}", _below(root, f"{root}/{inner}"))
    local = Path(folder).resolve()
    if "://" in name:
        raise ValueError(f"{where} names {redact(name)}, which is outside {local}")
    path = (local / name).resolve()
    if not path.is_relative_to(local):
        raise ValueError(f"{where} names {path}, which is outside {local}")
    return Source(path, path.relative_to(local).as_posix())


def _described(path: Path | str, name: str, label_from_folder: bool, sidecar: str, data: Any) -> Source:
    """A file of a folder with its label and what its sidecar, read by ``data``, says of it."""
    labelled = label_from_folder and "/" in name
    fields = {"label": name.partition("/")[0]} if labelled else {}
    if data is None:
        return Source(path, name, fields)
    try:
        told = {key: value for key, value in read_json(data()).items() if value is not None}
        return Source(path, name, fields | _fields(told, sidecar))
    except (ValueError, OSError, RemoteError) as error:
        return Source(path, name, fields, f"its sidecar {sidecar} cannot be used: {error}")


def _fields(row: dict[str, Any], where: str) -> dict[str, Any]:
    """What is kept of a row. Labels are text: numbers become it.

    Raises:
        ValueError: for a label that is neither.
    """
    label = row.get("label", "")
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise ValueError(f"{where}: label: expected text or a number, got {label!r}")
    return {**row, "label": str(label)} if "label" in row else row


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterable[str]:
    """Names of the files below a folder; a link to a folder that it lies in is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, real))
            elif entry.is_file():
                yield prefix + entry.name


def _hidden_folder(name: str) -> str:
    """The first hidden folder on the way to a file; empty if there is none."""
    parts = name.split("/")[:-1]
    hidden = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
    return "" if hidden is None else "/".join(parts[: hidden + 1])


def _ending(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""


def _below(root: str, address: str) -> str:
    """The name of an object below a folder; the web writes it with percent signs."""
    name = address[len(root) + 1 :]
    return unquote(name) if address.startswith(("http://", "https://")) else name
