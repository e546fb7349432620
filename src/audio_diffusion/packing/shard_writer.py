"""Writes clips into shards."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from audio_diffusion.checkpoints.files import is_full, room
from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.index import write_index
from audio_diffusion.packing.form import Form, cut_of
from audio_diffusion.packing.prepare import Clip, read_blocks
from audio_diffusion.packing.sources import Source

WORK = ".packing"  # folder in the output for unfinished files


_BESIDE = 3000  # approximate bytes of a clip's json and tar headers


def bytes_needed(sources: Iterable[Source], plan: Iterable[AudioInfo | str], form: Form) -> int:
    """Estimates the size of the shards of these sources in bytes; for FLAC and for kept URLs it is an upper bound."""
    total = 0
    for source, info in zip(sources, plan, strict=True):
        if not isinstance(info, AudioInfo):
            continue
        if form.format == "keep" and isinstance(source.path, Path):
            total += source.path.stat().st_size + _BESIDE
        else:
            cut = cut_of(info, form)
            total += cut.num_pieces * (2 * cut.piece * cut.channels + _BESIDE)
    return total


@contextmanager
def told_when_full(output: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Replaces the error of a full disk with one that names the folder, the free space and the needed space.

    Raises:
        ValueError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise ValueError(
            f"output: the disk is full: {room(output, needed())}. Finished shards are kept: free some space "
            "and repeat the command to continue"
        ) from error


class _Hashed(io.RawIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


class ShardWriter:
    """Writes the shards of one split, each under a temporary name until it is complete and synced to disk.

    Args:
        output: folder of the shards.
        split: prefix of the shards' names.
        number: number of the first shard.
        shard_bytes: size in bytes at which a shard is full.
        store: access to sources that are URLs.
    """

    def __init__(self, output: Path, split: str, number: int, shard_bytes: int, store: RemoteStore | None):
        self._output, self._split, self._number = output, split, number
        self._shard_bytes, self._store = shard_bytes, store
        self._tar: tarfile.TarFile | None = None

    @property
    def is_open(self) -> bool:
        """Whether a shard is being written."""
        return self._tar is not None

    @property
    def is_full(self) -> bool:
        """Whether the shard that is being written should be closed."""
        return self._tar is not None and self._tar.offset >= self._shard_bytes

    def add(self, clip: Clip) -> None:
        """Writes a clip: its audio, followed by its json.

        Raises:
            ValueError: if the source has changed since it was checked.
        """
        if self._tar is None:
            self._file = open(self._part, "wb")  # noqa: SIM115
            self._hashed = _Hashed(self._file)
            self._tar = tarfile.TarFile(fileobj=cast(BinaryIO, self._hashed), mode="w", format=tarfile.USTAR_FORMAT)
            self._clips, self._seconds = 0, 0.0
        name = f"{clip.key}.{clip.ending}"
        if clip.audio is not None:
            self._member(name, [clip.audio], clip.num_bytes)
        else:
            digest = hashlib.sha256()
            written = self._member(name, _hashing(read_blocks(clip.source, self._store), digest), clip.num_bytes)
            if written != clip.num_bytes or digest.hexdigest() != clip.meta["sha256"]:
                raise ValueError(
                    f"input: {clip.source.name} was changed while it was packed; remove the output and start again"
                )
        meta = json.dumps(clip.meta).encode()
        self._member(f"{clip.key}.json", [meta], len(meta))
        self._clips += 1
        self._seconds += clip.meta["frames"] / clip.meta["sample_rate"]

    @property
    def _part(self) -> Path:
        return self._output / WORK / f"{self._split}.tar.part"

    def _member(self, name: str, blocks: Iterable[bytes], size: int) -> int:
        """Writes a member whose bytes are the same on every machine (no time, no owner); returns the number of bytes
        written."""
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        self._tar.addfile(info)
        written = 0
        for block in blocks:
            self._hashed.write(block)
            written += len(block)
        padding = -size % tarfile.BLOCKSIZE
        self._hashed.write(bytes(padding))
        self._tar.offset += size + padding
        return written

    def close(self) -> dict[str, Any]:
        """Finishes the shard: renames it and writes its index; returns its entry of the manifest."""
        assert self._tar is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._output / f"{self._split}-{self._number:06d}.tar"
        self._part.replace(path)
        write_index(path)
        self._tar, self._number = None, self._number + 1
        return {
            "name": path.name,
            "split": self._split,
            "clips": self._clips,
            "bytes": path.stat().st_size,
            "sha256": self._hashed.digest.hexdigest(),
            "seconds": round(self._seconds, 6),
        }


def _hashing(blocks: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block
