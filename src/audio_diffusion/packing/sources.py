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
_NEAR = 0.75  # how alike a name and a known one are, from 0 to 1, for it to be taken as misspelt
_KEYS = ("label", "split", "caption")  # of a sidecar, that mean something; all others are kept as they are
_READING = 16  # threads that read sidecars
_RESERVED = 10_000  # bytes of a clip's json that are kept for what the packer adds


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
    split = SPLITS.get(named.strip().lower()) if isinstance(named, str) else None
    if split is None:
        raise ValueError(f"manifest: split of {source.name}: expected {', '.join(SPLITS)}, got {named!r}")
    return split


def scan_folder(folder: Path, label_from_folder: bool) -> list[Source]:
    """All audio files below a folder. Links to folders are followed; hidden folders are not entered, and a source that
    is refused stands for those with audio in them, for a folder that cannot be read, and for a broken link.

    The label is the sub-folder directly below the folder. Beside ``x.wav`` a ``x.json`` may tell more, or better.

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
    """One audio file, without a label but for what a ``x.json`` beside it says.

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
    """All audio below a folder of a bucket or web server, as ``scan_folder`` finds it in a local one.

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
    """A file of a folder with its label and what its sidecar, read by ``data``, says of it."""
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
    """Checks a name, stripped and in any case, against the known ones that were not given; ``caption_en`` is fine.

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
    """What is kept of a manifest's row or a sidecar. Labels are text: numbers become text, an empty one is none.

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
    """A name from the file system as text. The bytes of one that is not UTF-8 are read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1") if os.name == "posix" else name.encode("utf-8", "replace").decode()
    return name


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, "") of each file below a folder, and (name, problem) of what cannot be read. A link to a folder that it
    lies in is not followed."""
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
    """What one entry of a folder adds to the walk."""
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
    """The first hidden folder on the way to a file; empty if there is none."""
    parts = name.split("/")[:-1]
    hidden = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
    return "" if hidden is None else "/".join(parts[: hidden + 1])


def _ending(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""


def below(root: str, address: str) -> str:
    """The name of an object below a folder; the web writes it with percent signs."""
    name = address[len(root) + 1 :]
    return unquote(name) if address.startswith(("http://", "https://")) else name
