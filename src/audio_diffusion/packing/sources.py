"""Finds the files to pack below a folder or a URL, and their metadata."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.audio.reading import PACKED as EXTENSIONS
from audio_diffusion.data.audio.reading import is_sidecar
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards.members import MAX_JSON_BYTES, read_json

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NEAR = 0.75  # similarity from 0 to 1 from which on a name counts as a misspelling of a known one
_KEYS = ("label", "split", "caption")  # keys of a sidecar with a meaning; all others are stored unchanged
_READING = 16  # threads that read sidecars
_RESERVED = 10_000  # bytes of a clip's json that are reserved for what the packer adds


@dataclass(frozen=True)
class Source:
    """A file to pack: its path (or its URL, a str), its name relative to the input, its metadata, and the reason if it
    has been refused already."""

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
        """A unique key without dots and characters that tar or WebDataset treat specially."""
        stem = self.name.rpartition("/")[2].rpartition(".")[0]
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:60]}_{self.digest[:12]}"

    @property
    def ending(self) -> str:
        """The extension of its name, in lower case."""
        return _ending(self.name)


def split_of(source: Source, val_fraction: float) -> str:
    """Returns train, val or test: as its manifest or sidecar says, else by the hash of its name.

    Raises:
        ValueError: for a split of another name.
    """
    named = source.fields.get("split")
    if named is None:
        return "val" if int(source.digest[:8], 16) < val_fraction * 2**32 else "train"
    split = SPLITS.get(named.strip().lower()) if isinstance(named, str) else None
    if split is None:
        raise ValueError(f"manifest: split of {source.name}: expected {', '.join(SPLITS)}, got {named!r}")
    return split


def scan_folder(folder: Path, label_from_folder: bool) -> list[Source]:
    """Finds all audio files below a folder. Links to folders are followed; hidden folders are not searched. Hidden
    folders with audio, unreadable folders and broken links are returned as refused sources.

    The label is the sub-folder directly below the folder. A sidecar ``x.json`` beside ``x.wav`` may add to the metadata
    or override it.

    Raises:
        ValueError: if there is no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise ValueError(f"input: expected a folder of audio, got {str(folder)!r}: there is no such folder or file")
    problems = dict(sorted(_walk(str(folder), "", ())))
    if "" in problems:
        raise ValueError(f"input: {str(folder)!r} {problems['']}")
    names = [name for name, problem in problems.items() if not problem]
    broken = [Source(folder / name, name, {}, problem) for name, problem in problems.items() if problem]
    hidden = {_hidden_folder(name) for name in names if _ending(name) in EXTENSIONS} - {""}
    known = set(names)

    def described(name: str) -> Source:
        sidecar = f"{name.rpartition('.')[0]}.json"
        data = (folder / sidecar).read_bytes if sidecar in known else None
        return _described(folder / name, name, label_from_folder, sidecar, data)

    sources = [described(name) for name in names if _ending(name) in EXTENSIONS and not _hidden_folder(name)]
    if not sources:
        such = f"; {broken[0].name!r} {broken[0].problem}" if broken else ""
        raise ValueError(f"input: no audio ({', '.join(EXTENSIONS)}) below {str(folder)!r}{such}")
    skipped = [Source(folder / name, name, {}, "a hidden folder: not searched") for name in sorted(hidden)]
    return sources + broken + skipped


def scan_file(path: Path) -> list[Source]:
    """Returns one audio file as a source, with the metadata of its sidecar ``x.json``, and without a label unless the
    sidecar has one.

    Raises:
        ValueError: if its name is none of an audio file.
    """
    if _ending(path.name) not in EXTENSIONS:
        raise ValueError(
            f"input: expected a folder of audio, or one audio file ({', '.join(EXTENSIONS)}), got the file "
            f"{str(path)!r}. A list of files is given beside their folder: input=FOLDER manifest=FILE"
        )
    sidecar = path.with_suffix(".json")
    data = sidecar.read_bytes if sidecar.is_file() else None
    return [_described(path, path.name, False, sidecar.name, data)]


def scan_url(url: str, label_from_folder: bool, store: RemoteStore) -> list[Source]:
    """Finds all audio below a folder of a bucket or web server, like ``scan_folder``.

    Raises:
        ValueError: if it cannot be listed, or holds no audio.
    """
    url = url.rstrip("/")
    try:
        found = {below(url, address): address for address in store.list(url, recursive=True)}
        listed = {name: address for name, address in found.items() if not is_sidecar(name)}
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
        raise ValueError(f"input: no audio ({', '.join(EXTENSIONS)}) below {redacted_url(url)!r}")
    return sources + [Source(f"{url}/{name}", name, {}, "a hidden folder: not searched") for name in sorted(hidden)]


def _described(path: Path | str, name: str, label_from_folder: bool, sidecar: str, data: Any) -> Source:
    """Creates the source of a file with its label and the metadata of its sidecar, which ``data`` reads."""
    labelled = label_from_folder and "/" in name
    fields = {"label": readable(name.partition("/")[0])} if labelled else {}
    if data is None:
        return Source(path, name, fields)
    try:
        given = {key: value for key, value in read_json(data()).items() if value is not None}
        for key, value in given.items():
            if key not in _KEYS and isinstance(value, str | int | float):  # a list may mean something else
                refuse_misspelt(key, [known for known in _KEYS if known not in given], f"key {key!r}")
        return Source(path, name, fields | fields_of(given, sidecar))
    except (ValueError, OSError, RemoteError) as error:
        return Source(path, name, fields, f"its sidecar {sidecar} cannot be used: {error}")


def refuse_misspelt(name: str, known: Sequence[str], what: str) -> None:
    """Checks whether a name is a misspelling of a known one, ignoring case and outer spaces; extensions such as
    ``caption_en`` are allowed.

    Raises:
        ValueError: if it is nearly one of them; the message begins with ``what``, such as "key 'lable'".
    """
    name = name.strip().lower()
    candidates = [word for word in known if not re.match(rf"{word}[_\W\d]", name)]
    if near := get_close_matches(name, candidates, 1, _NEAR):
        raise ValueError(
            f"{what}: did you mean {near[0]!r}? Correct its name, or, if it means something else, give it one that is "
            "less alike"
        )


def fields_of(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the metadata to keep of a manifest's row or a sidecar. Labels are text: numbers are converted, and an
    empty label is none.

    Raises:
        ValueError: for a label or a split of another type, or for more than a clip's json may hold.
    """
    row = {key: value for key, value in row.items() if key not in ("label", "split") or value != ""}
    label, split = row.get("label", ""), row.get("split", "")
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise ValueError(f"{where}: label: expected text or a number, got {label!r}")
    if not isinstance(split, str):
        raise ValueError(f"{where}: split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if len(json.dumps(row)) > MAX_JSON_BYTES - _RESERVED:
        longest = max(row, key=lambda key: len(json.dumps(row[key])))
        raise ValueError(
            f"{where}: expected at most {MAX_JSON_BYTES - _RESERVED} bytes for one file, got "
            f"{len(json.dumps(row))}; the longest field is {longest!r}"
        )
    return {**row, "label": readable(str(label))} if "label" in row else row


def readable(name: str) -> str:
    """Converts a name from the file system to valid text; the bytes of a name that is not UTF-8 are read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1") if os.name == "posix" else name.encode("utf-8", "replace").decode()
    return name


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yields (name, "") for each file below a folder, and (name, problem) for entries that cannot be read. A link to a
    folder that contains it is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield from _entry(entry, prefix, (*above, real))
    except OSError as error:
        yield prefix.rstrip("/"), f"is a folder that cannot be read: {error.strerror}"


def _entry(entry: "os.DirEntry[str]", prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yields what one entry of a folder contributes to the walk."""
    name = prefix + entry.name
    if is_sidecar(name):
        return
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:  # such as a link to itself
        yield name, f"cannot be read: {error.strerror}"
        return
    if is_folder:
        yield from _walk(entry.path, f"{name}/", above)
    elif is_file:
        yield name, ""
    elif _ending(name) in EXTENSIONS and os.path.exists(entry.path):
        yield name, "is neither a file nor a folder, but a pipe, a socket or a device"
    elif _ending(name) in EXTENSIONS:
        yield name, f"is a link to a file that is not there: {os.readlink(entry.path)}"


def _hidden_folder(name: str) -> str:
    """Returns the first hidden folder on the path of a file, or an empty string."""
    parts = name.split("/")[:-1]
    hidden = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
    return "" if hidden is None else "/".join(parts[: hidden + 1])


def _ending(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""


def below(root: str, address: str) -> str:
    """Returns the name of an object relative to a folder, without percent encoding on the web."""
    name = address[len(root) + 1 :]
    return unquote(name) if address.startswith(("http://", "https://")) else name
