"""A shard's index: the byte ranges of the clips in the tar, so that nothing else needs to be read."""

import contextlib
import json
import os
import tarfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from audio_diffusion.data.audio.reading import CONVERTED, EXTENSIONS, is_sidecar
from audio_diffusion.data.faults import Skipped
from audio_diffusion.data.shards.members import MAX_JSON_BYTES, READERS, read_json

INDEX_VERSION = 3
#: message for a member that packing could convert
_CONVERT = (
    "{} is not a supported audio format; to use it, unpack the shards and pack the files with make_shards.py "
    "format=flac, which supports it after: pip install -e '.[av]'"
)

Place = tuple[int, int]  # (offset, size) in bytes; (0, 0) for none


@dataclass(frozen=True)
class ShardIndex:
    """The clips of one shard, in the order of their audio in the tar; each list has one entry per clip.

    Attributes:
        path: path of the shard.
        num_bytes: size of the shard; like its time, it distinguishes a replaced shard from the indexed one.
        keys: key of each clip: the path of its audio member up to the last dot.
        audio: position of each clip's audio member.
        fields: position of each clip's other members, by ending: ``json``, ``npy``, ``txt``, or, for a member
            ``KEY.text.npy``, ``text.npy``.
        frames: samples per channel; 0 if unknown (shards of other tools).
        sample_rate: Hz; 0 if unknown.
        channels: number of channels; 0 if unknown.
        sha256: hash of the audio member; empty if unknown.
        refused: (key, kind, reason) of members that cannot be used.
        choices: the endings of audio members and the number of clips with each, if clips have several audio members
            or an ending was selected.
        etag: for a remote shard, the server's identifier of the version of its contents.
    """

    path: str
    num_bytes: int
    keys: list[str]
    audio: list[Place]
    fields: dict[str, list[Place]]
    frames: list[int]
    sample_rate: list[int]
    channels: list[int]
    sha256: list[str]
    refused: list[tuple[str, str, str]]
    choices: dict[str, int] = field(default_factory=dict)
    etag: str = ""

    def skipped(self) -> list[Skipped]:
        return [Skipped(self.path, *refused) for refused in self.refused]


def _problem(member: tarfile.TarInfo, num_bytes: int) -> tuple[str, str] | None:
    """Returns (kind, reason) if a member cannot be used, else None."""
    if not member.isfile() or member.issparse():
        return "unsafe", "a link or another special member, not a plain file"
    if ".." in PurePosixPath(member.name).parts or member.name.startswith("/"):
        return "unsafe", "its name leads out of the shard"
    if member.offset_data + member.size > num_bytes:
        return "truncated", "cut off by the end of the shard"
    return None


def _owner(name: str, audio: dict[str, Place]) -> tuple[str, str]:
    """Returns (key, ending) of a member that is not audio; the key is the longest key of a clip that fits."""
    key, _, ending = name.rpartition(".")
    longer, _, middle = key.rpartition(".")
    if key not in audio and longer in audio and "/" not in middle:
        return longer, f"{middle}.{ending}"
    return key, ending


def _split(name: str, audio_member: str | None) -> tuple[str, str, bool]:
    """Returns (key, ending, whether it is a clip's audio) of a member."""
    if audio_member and name.lower().endswith(f".{audio_member.lower()}"):
        return name[: -len(audio_member) - 1], audio_member.lower(), True
    key, _, ending = name.rpartition(".")
    return key, ending, not audio_member and ending.lower() in EXTENSIONS


class _Members:
    """Sorts the members of a tar into audio of clips, their other members, and members that cannot be used.

    Args:
        num_bytes: size of the tar.
        audio_member: see ``scan``.
    """

    def __init__(self, num_bytes: int, audio_member: str | None):
        self._num_bytes, self._audio_member = num_bytes, audio_member
        self.audio: dict[str, Place] = {}
        self.refused: list[tuple[str, str, str]] = []
        self._others: list[tuple[str, Place]] = []
        self._endings: dict[str, set[str]] = {}  # endings of the audio members of each key

    def add(self, member: tarfile.TarInfo) -> None:
        """Adds the next member."""
        key, ending, is_audio = _split(member.name, self._audio_member)
        if member.isdir() or is_sidecar(member.name):
            return
        self._note_ending(member, key, ending)
        if ending.lower() in CONVERTED and not self._audio_member:
            self.refused.append((member.name, "format", _CONVERT.format(ending)))
        if not (is_audio or ending in READERS):
            return
        if problem := _problem(member, self._num_bytes):
            self.refused.append((member.name, *problem))
        elif not is_audio:
            self._others.append((member.name, (member.offset_data, member.size)))
        elif key in self.audio:
            self.refused.append((member.name, "duplicate", "a second member of this name"))
        else:
            self.audio[key] = (member.offset_data, member.size)

    def _note_ending(self, member: tarfile.TarInfo, key: str, ending: str) -> None:
        """Records the ending of an audio member, whether it is the selected one or not."""
        if ending.lower() not in EXTENSIONS or not member.isfile():
            return
        base, _, all_endings = member.name.rpartition("/")[2].partition(".")
        owner = f"{member.name.rpartition('/')[0]}/{base}" if self._audio_member else key
        self._endings.setdefault(owner, set()).add((all_endings if self._audio_member else ending).lower())

    def fields(self) -> dict[str, dict[str, Place]]:
        """Returns the members other than audio, by ending and key; those without audio are refused."""
        fields: dict[str, dict[str, Place]] = {}
        for name, place in self._others:
            key, ending = _owner(name, self.audio)
            if key not in self.audio:
                self.refused.append((name, "metadata", f"{ending} without audio"))
            elif key in fields.setdefault(ending, {}):
                self.refused.append((name, "duplicate", "a second member of this name"))
            else:
                fields[ending][key] = place
        return fields

    def choices(self) -> dict[str, int]:
        """Returns ``ShardIndex.choices``."""
        several = [found for found in self._endings.values() if self._audio_member or len(found) > 1]
        return dict(Counter(ending for found in several for ending in sorted(found)))


def scan(
    file: BinaryIO, path: str, num_bytes: int, with_json: bool = True, audio_member: str | None = None
) -> ShardIndex:
    """Indexes a tar by reading its headers, not its audio.

    Args:
        file: the tar, seekable.
        path: path of the shard, which is stored in the index.
        num_bytes: size of the tar.
        with_json: whether to read frames, rate, channels and sha256 from the json members that make_shards.py writes.
        audio_member: ending of the members that are the clips' audio, such as ``flac`` or ``vocals.wav``; None accepts
            any ending of audio, and uses the first audio member of each clip.
    """
    members = _Members(num_bytes, audio_member)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.name} has a negative size")  # reading would never end
                members.add(member)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile ends at a broken header
                raise tarfile.ReadError("no end mark after the last member; the tar is cut off or damaged there")
    except tarfile.ReadError as error:
        members.refused.append((PurePosixPath(path).name, "truncated", f"the tar cannot be read to its end: {error}"))
    fields, keys = members.fields(), list(members.audio)
    known = [_known(file, fields.get("json", {}).get(key)) if with_json else {} for key in keys]
    return ShardIndex(
        path=path,
        num_bytes=num_bytes,
        keys=keys,
        audio=list(members.audio.values()),
        fields={ending: [places.get(key, (0, 0)) for key in keys] for ending, places in fields.items()},
        frames=[_whole(meta.get("frames")) for meta in known],
        sample_rate=[_whole(meta.get("sample_rate")) for meta in known],
        channels=[_whole(meta.get("channels")) for meta in known],
        sha256=[str(meta.get("sha256", "")) for meta in known],
        refused=members.refused,
        choices=members.choices(),
    )


def _known(file: BinaryIO, place: Place | None) -> dict:
    """Returns the content of a clip's json; empty if it cannot be read, which is reported when the clip is used."""
    if place is None or place[1] > MAX_JSON_BYTES:
        return {}
    file.seek(place[0])
    try:
        return read_json(file.read(place[1]))
    except ValueError:
        return {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def write_atomic(path: Path, text: str) -> None:
    """Writes a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def index_path(shard: str | Path, audio_member: str | None = None) -> str:
    """Returns the path or URL of a shard's index: ``x.index.json`` beside ``x.tar``, or ``x.flac.index.json`` if the
    audio member ``flac`` is selected."""
    stem, _, query = str(shard).rpartition(".tar")
    chosen = f".{audio_member}" if audio_member else ""
    return f"{stem}{chosen}.index.json{query}" if stem else f"{shard}{chosen}.index.json"


def dumps(index: ShardIndex) -> str:
    """Serialises an index without its path, since the folder may be moved."""
    columns = {"version": INDEX_VERSION, **asdict(index)}
    del columns["path"]
    if not index.etag:
        del columns["etag"]
    return json.dumps(columns)


def loads(text: str | bytes, path: str) -> ShardIndex:
    """Parses the index of the shard ``path``.

    Raises:
        ValueError: if it has another version, or is not an index.
    """
    columns = json.loads(text)
    version = columns.pop("version", None) if isinstance(columns, dict) else None
    # version 2 lacks .cls members; shards of make_shards.py, which have a hash for every clip, contain none
    if version != INDEX_VERSION and not (version == 2 and all(columns.get("sha256") or [""])):
        raise ValueError(f"the index of {path} is not of version {INDEX_VERSION}")
    try:
        return ShardIndex(path=path, **columns)
    except TypeError as error:
        raise ValueError(f"the index of {path} is incomplete: {error}") from error


def write_index(shard: str | Path, audio_member: str | None = None) -> ShardIndex:
    """Indexes a shard and writes the index beside it; if the folder is not writable, the index is only returned."""
    with open(shard, "rb", buffering=1 << 16) as file:
        index = scan(cast(BinaryIO, file), str(shard), os.path.getsize(shard), audio_member=audio_member)
    with contextlib.suppress(OSError):
        write_atomic(Path(index_path(shard, audio_member)), dumps(index))
    return index


def load_index(shard: str | Path, audio_member: str | None = None) -> ShardIndex:
    """Returns a shard's index, which is built at first use and again if the shard's size has changed or it is newer."""
    path, tar = Path(index_path(shard, audio_member)), os.stat(shard)
    try:
        index = loads(path.read_text(encoding="utf-8"), str(shard))
        if index.num_bytes == tar.st_size and path.stat().st_mtime_ns >= tar.st_mtime_ns:
            return index
    except (OSError, ValueError):
        pass
    return write_index(shard, audio_member)
