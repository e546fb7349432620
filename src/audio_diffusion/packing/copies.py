"""Finds copies: files with the same bytes under several names. If one is held out and another one is trained on, the
validation loss is too good."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path

from audio_diffusion.checkpoints.files import sha256_of
from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.wording import counted
from audio_diffusion.packing.parallel import ordered
from audio_diffusion.packing.prepare import file_of, read_blocks
from audio_diffusion.packing.sources import Source

_SAMPLE = 1 << 14  # bytes in the middle of a file that are compared first
_FEW = 100  # files that are compared without other processes


def find_copies(
    sources: Sequence[Source], plan: Sequence[AudioInfo | str], store: RemoteStore | None, num_workers: int
) -> list[list[int]]:
    """Returns groups of two or more sources with the same content, as indices into the list, sorted by name.

    It is fast for large folders: files of the same size (for URLs, of the same length) are compared by a few bytes, and
    by all bytes only if these agree. A file that cannot be read is not a copy.
    """
    usable = [i for i, info in enumerate(plan) if isinstance(info, AudioInfo)]
    groups = _alike([usable], {i: _size(sources[i], plan[i]) for i in usable})
    for digest in (_sampled, _hashed):
        rest = [i for group in groups for i in group]
        workers = num_workers if len(rest) > _FEW else 1
        found = ordered(partial(_read, digest, store), [sources[i] for i in rest], workers)
        groups = _alike(groups, dict(zip(rest, found, strict=True)))
    return [sorted(group, key=lambda i: sources[i].name) for group in groups]


def describe(copies: Iterable[Sequence[int]], sources: Sequence[Source], splits: Sequence[str]) -> list[str]:
    """Returns lines about copies: their number, and those that the given splits separate."""
    copies = list(copies)
    if not copies:
        return []
    number = sum(len(group) - 1 for group in copies)
    said = f"{counted(number, 'file')} {'is a copy of another' if number == 1 else 'are copies of others'}"
    apart = [group for group in copies if len({splits[i] for i in group}) > 1]
    if not apart:
        return [f"{said}: kept together in one split"]
    first = apart[0][0]
    other = next(i for i in apart[0] if splits[i] != splits[first])
    return [
        f"warning: {said}, and the given splits divide copies of {counted(len(apart), 'file')}, such as "
        f"{sources[first].name!r} ({splits[first]}) and {sources[other].name!r} ({splits[other]})"
    ]


def _alike(groups: Iterable[Sequence[int]], keys: dict[int, Hashable]) -> list[list[int]]:
    """Divides groups by keys; omits groups with one member, and members without a key."""
    divided = []
    for group in groups:
        by_key: dict[Hashable, list[int]] = {}
        for i in group:
            if keys[i] is not None:
                by_key.setdefault(keys[i], []).append(i)
        divided += [members for members in by_key.values() if len(members) > 1]
    return divided


def _size(source: Source, info: AudioInfo | str) -> Hashable:
    """Returns a property that copies share and that is known without reading the file."""
    if not isinstance(source.path, Path):
        return info  # needs no further request to the server
    try:
        return source.path.stat().st_size
    except OSError:
        return None


def _read(digest: Callable[[Source, RemoteStore | None], str], store: RemoteStore | None, source: Source) -> str | None:
    try:
        return digest(source, store)
    except (OSError, RemoteError):
        return None


def _sampled(source: Source, store: RemoteStore | None) -> str:
    """Returns the size of a file, and a hash of some bytes in its middle."""
    file = file_of(source, store)
    with open(file, "rb") if isinstance(file, Path) else file as opened:
        size = opened.seek(0, 2)
        opened.seek(max(size - _SAMPLE, 0) // 2)
        return f"{size} {hashlib.sha256(opened.read(_SAMPLE)).hexdigest()}"


def _hashed(source: Source, store: RemoteStore | None) -> str:
    return sha256_of(read_blocks(source, store))
