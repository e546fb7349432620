"""The manifest of a checkpoint, which lists its files and is written last: without it, a checkpoint is unfinished."""

import hashlib
import json
import operator
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from audio_diffusion.checkpoints.files import FileRecord, record_of


def _versions() -> dict[str, str]:
    installed = {name: version(name) for name in ("lightning", "audio_diffusion")}
    return {"python": platform.python_version(), "torch": torch.__version__, **installed}


def hash_of(config: Any) -> str:
    """Returns the sha256 of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def differences(
    before: Any, now: Any, place: str = "", same: Callable[[Any, Any], bool] = operator.eq
) -> Iterator[tuple[str, str]]:
    """Returns (dotted key, old and new value) of all values of two configurations that are not ``same``."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from differences(before.get(key), now.get(key), f"{place}.{key}".strip("."), same)
    elif not same(before, now):
        yield place, f"{place}: {before!r} before, {now!r} now"


@dataclass(frozen=True)
class Manifest:
    """Manifest of the checkpoint of one step.

    Args:
        step: number of optimizer steps done.
        files: the checkpoint's files, by name relative to the manifest's folder.
        world_size: number of ranks of the run.
        batch_size: clips per optimizer step over all ranks; None if unknown.
        config: the run's resolved configuration.
        config_sha256: hash of the configuration.
        versions: versions of the software that wrote the checkpoint.
        finite: whether all weights are finite; others are never saved.
    """

    step: int
    files: Mapping[str, FileRecord]
    world_size: int
    batch_size: int | None
    config: Any
    config_sha256: str
    versions: Mapping[str, str] = field(default_factory=_versions)
    finite: bool = True

    def to_json(self) -> bytes:
        """Returns the manifest as json."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Reads a manifest from a file.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is not a manifest.
        """
        try:
            content = json.loads(path.read_bytes())
            files = {str(name): FileRecord(int(r["bytes"]), str(r["sha256"])) for name, r in content["files"].items()}
            manifest = cls(**{**content, "files": files})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path.name} is not a manifest: {error}") from error
        for name in files:
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts:
                raise ValueError(f"{path.name} names {name!r}, which lies outside its folder")
        return manifest

    def sizes_problem(self, folder: Path) -> str | None:
        """Checks that the files exist and have the right sizes; returns the problem, or None."""
        for name, record in self.files.items():
            try:
                size = (folder / name).stat().st_size
            except OSError as error:
                return f"{name}: {error.strerror}"
            if size != record.bytes:
                return f"{name}: has {size} bytes, of {record.bytes} (a cut-off write)"
        return None if self.files else "its manifest names no files"

    def problem(self, folder: Path) -> str | None:
        """Reads the files completely and checks them; returns the problem, or None."""
        if problem := self.sizes_problem(folder):
            return problem
        for name, record in self.files.items():
            try:
                found = record_of(folder / name)
            except OSError as error:
                return f"{name}: {error.strerror}"
            if found != record:
                return f"{name}: sha256 differs (a flipped bit or a cut-off write)"
        return None
