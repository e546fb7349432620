"""Manifests, in csv or jsonl: lists of the files to pack, with their labels, splits and captions."""

import codecs
import csv
import io
import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.remote import RemoteError, RemoteStore, is_remote
from audio_diffusion.data.shards.members import read_json
from audio_diffusion.packing.sources import Source, below, fields_of, refuse_misspelt

NAMES = ("file", "path")  # columns that name the file
KNOWN = (*NAMES, "label", "split", "caption")  # columns with a meaning; all others are stored unchanged
_LONGEST_FIELD = 2**31 - 1  # characters; limits for a clip's json are checked later, with the line number


def scan_manifest(folder: Path | str, manifest: Path | str, store: RemoteStore | None = None) -> list[Source]:
    """Returns the files listed in a manifest, whose column ``file`` or ``path`` is relative to the folder.

    The other columns are stored with each clip. A csv may be separated by commas, semicolons or tabs; values in a jsonl
    keep their types. Only listed files are packed, and their sidecars are not read. A file may be a link to a file
    outside the folder, but its name must lie inside.

    Args:
        folder: the input, local or a URL; rows may name URLs below it.
        manifest: local path or URL.
        store: store for reading URLs.

    Raises:
        ValueError: if the manifest cannot be read; if a line names no file, a file that another line names, or a file
            outside the folder; or if a column's name is a likely misspelling of a known one.
    """
    if isinstance(manifest, str) and is_remote(manifest):
        try:
            data = (store or RemoteStore(None)).read(manifest, cache=False)
        except RemoteError as error:
            raise ValueError(f"manifest: {error}") from error
    else:
        try:
            data = Path(manifest).read_bytes()
        except OSError as error:
            raise ValueError(f"manifest: {str(manifest)!r} cannot be read: {error.strerror}") from error
    shown, sources, seen = redacted_url(str(manifest)), [], set()
    text = _text(data, shown)
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
        sources.append(Source(source.path, source.name, fields_of(row, where)))
    if not sources:
        raise ValueError(f"manifest: {shown} names no files")
    return sources


def _text(data: bytes, shown: str) -> str:
    """Decodes a manifest from UTF-8 or, if it begins with a byte order mark as spreadsheets write it, from UTF-16.

    Raises:
        ValueError: if it is in another encoding; the message gives the line.
    """
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"manifest: line {number} of {shown}: expected text in UTF-8, got the byte 0x{data[error.start]:02x}. Save "
            f"it as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8 {shown} > new.csv"
        ) from error


def _columns(names: Iterable[str], where: str) -> list[str]:
    """Returns the names of columns without surrounding spaces, known names (such as ``File``) in lower case.

    Raises:
        ValueError: if a name occurs twice, or is a likely misspelling of a known column that is absent.
    """
    plain = [name.strip() for name in names]
    found = [name.lower() if name.lower() in KNOWN else name for name in plain]
    if twice := next((name for name in found if name and found.count(name) > 1), None):
        raise ValueError(f"{where}: expected each column once, found {twice!r} twice")
    missing = [name for name in KNOWN if name not in found and (name not in NAMES or not set(NAMES) & set(found))]
    for name in found:
        if name not in KNOWN:
            refuse_misspelt(name, missing, f"{where}: column {name!r}")
    return found


def _csv_rows(text: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, row) of a csv without empty values and empty rows.

    Raises:
        ValueError: if the header has no column ``file`` or ``path``, or if a row has more values than columns.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)  # a comma if there is none of the three
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        header = next(reader, [])
        columns = _columns(header, f"manifest: line 1 of {shown}")
        if not set(NAMES) & set(columns):
            raise ValueError(f"manifest: expected a column file or path in {shown}, got {header}")
        for values in reader:
            if len(values) > len(columns):
                raise ValueError(
                    f"manifest: line {reader.line_num} of {shown}: expected {len(columns)} values "
                    f"({', '.join(columns)}), got {len(values)}; a value that contains {separator!r} must "
                    'be in double quotes ("..")'
                )
            stripped = dict(zip(columns, (value.strip() for value in values), strict=False))
            if any(stripped.values()):
                yield reader.line_num, {key: value for key, value in stripped.items() if key and value}
    except csv.Error as error:
        raise ValueError(f"manifest: line {reader.line_num} of {shown}: not a csv: {error}") from error


def _jsonl_rows(text: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, object) of a jsonl without null values."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"manifest: line {number} of {shown}"
            try:
                row = read_json(line.encode())
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            named = zip(_columns(row, where), row.values(), strict=True)
            yield number, {key: value for key, value in named if value is not None}


def _named(folder: Path | str, name: str, where: str) -> Source:
    """Returns the file that a row of a manifest names.

    Raises:
        ValueError: if its name leads out of the folder. The targets of links are not checked, because snapshots of data
            sets are folders of links.
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
            raise ValueError(f"{where} names {redacted_url(name)}, which is outside {redacted_url(root)}")
        return Source(f"{root}/{inner}", below(root, f"{root}/{inner}"))
    local = os.path.abspath(folder)
    if "://" in name:
        raise ValueError(f"{where} names {redacted_url(name)}, which is outside {local}")
    path = os.path.normpath(os.path.join(local, name))
    for root in (local, os.path.realpath(folder)):
        if path.startswith(root.rstrip(os.sep) + os.sep):
            inner = os.path.relpath(path, root)
            return Source(Path(local, inner), Path(inner).as_posix())
    raise ValueError(f"{where} names {path}, which is outside {local}")
