"""Sharded checkpoints: folders in which each rank writes its own shards (``torch.distributed.checkpoint``).

    step_00001000.ckpt/__0_0.distcp, __1_0.distcp ..   tensors: each rank's part of weights, EMA and optimizer state
    step_00001000.ckpt/.metadata                       the location of each part of each tensor
    step_00001000.ckpt/rest.pt                         everything else, plain data
    step_00001000.json                                 the manifest of all these files

``.metadata`` is a pickle; the unpickler accepts tensor metadata only.
"""

import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from audio_diffusion.checkpoints.files import FileRecord, part_of, publish, record_of, remove, stage, sync_folder
from audio_diffusion.checkpoints.folder import manifest_of
from audio_diffusion.checkpoints.manifest import Manifest

_REST, _METADATA = "rest.pt", ".metadata"
Tensors = dict[str, Tensor]


def split(content: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Splits a checkpoint into weights and optimizer state by dotted name, and the rest with None in their places."""
    tensors: Tensors = {f"state_dict.{name}": value for name, value in content["state_dict"].items()}
    optimizers = []
    for number, optimizer in enumerate(content["optimizer_states"]):
        for i, values in optimizer["state"].items():
            tensors |= {f"optimizer_states.{number}.{i}.{name}": value for name, value in values.items()}
        optimizers.append({**optimizer, "state": None})
    assert all(isinstance(value, Tensor) for value in tensors.values())
    return tensors, {**content, "state_dict": None, "optimizer_states": optimizers}


def join(tensors: Tensors, rest: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``split``."""
    state: Tensors = {}
    optimizers: list[dict[str, Any]] = [{**optimizer, "state": {}} for optimizer in rest["optimizer_states"]]
    for key, value in tensors.items():
        group, name = key.split(".", 1)
        if group == "state_dict":
            state[name] = value
        else:
            number, i, moment = name.split(".", 2)
            optimizers[int(number)]["state"].setdefault(int(i), {})[moment] = value
    return {**rest, "state_dict": state, "optimizer_states": optimizers}


def write(
    checkpoint: Path,
    tensors: Tensors,
    rest: Mapping[str, Any],
    problem: str | None,
    describe: Callable[[dict[str, FileRecord]], Manifest],
    group: dist.ProcessGroup,
) -> None:
    """Writes this rank's part of a checkpoint; rank 0 also writes the rest and, after all ranks, the manifest.

    All ranks of ``group`` must call it. The folder has its temporary name until all its files are on disk.

    Args:
        checkpoint: the path to write.
        tensors: shards and whole tensors, on the CPU.
        rest: plain data.
        problem: the reason why this rank cannot write, or None; if any rank has one, no rank writes.
        describe: creates the manifest from the records of the files.
        group: a gloo process group, which can be used while training uses other groups.

    Raises:
        OSError: on all ranks, if any rank could not write.
    """
    part, first = part_of(checkpoint), dist.get_rank(group) == 0
    _together(lambda: _begin(checkpoint, problem, first), group)
    writer = dcp.FileSystemWriter(part, sync_files=True)
    _together(lambda: dcp.save(tensors, storage_writer=writer, process_group=group), group)  # type: ignore[arg-type]
    mine = list(part.glob(f"__{dist.get_rank(group)}_*.distcp"))
    if first:
        mine += [part / _REST, part / _METADATA]
    records = _together(lambda: _finish(checkpoint, mine, rest if first else None), group)
    if first:
        files = {name: record for found in records for name, record in found.items()}
    _together(lambda: _publish(checkpoint, describe(files)) if first else None, group)


def _together(work: Callable[[], Any], group: dist.ProcessGroup) -> list[Any]:
    """Runs ``work`` and returns the results of all ranks.

    Raises:
        OSError: on all ranks, if ``work`` failed on any.
    """
    try:
        mine, problem = work(), None
    except Exception as error:
        mine, problem = None, f"rank {dist.get_rank(group)}: {error}"
    answers: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(answers, (mine, problem), group=group)
    if problems := [problem for _, problem in answers if problem is not None]:
        raise OSError("; ".join(problems))
    return [answer for answer, _ in answers]


def _begin(checkpoint: Path, problem: str | None, first: bool) -> None:
    if problem is not None:
        raise ValueError(problem)
    if first:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        remove(part_of(checkpoint))
        part_of(checkpoint).mkdir()


def _finish(checkpoint: Path, files: Iterable[Path], rest: Mapping[str, Any] | None) -> dict[str, FileRecord]:
    """Writes the rest, reads back the files of this rank, and returns their records."""
    if rest is not None:
        path = part_of(checkpoint) / _REST
        stage(path, lambda file: torch.save(dict(rest), file))  # type: ignore[arg-type]
        publish(path)
    return {f"{checkpoint.name}/{path.name}": record_of(path) for path in files}


def _publish(checkpoint: Path, manifest: Manifest) -> None:
    sync_folder(part_of(checkpoint))
    stage(manifest_of(checkpoint), lambda file: file.write(manifest.to_json()))
    manifest_of(checkpoint).unlink(missing_ok=True)  # left by a damaged checkpoint of the same step
    remove(checkpoint)
    publish(checkpoint, manifest_of(checkpoint))
    if problem := manifest.sizes_problem(checkpoint.parent):
        raise OSError(f"read back after writing: {problem}")


def read(
    checkpoint: Path, like: Callable[[str], Tensor | None] = lambda name: None, group: Any = None
) -> dict[str, Any]:
    """Reads a checkpoint's content, in the form of an unsharded checkpoint, without running code from it.

    Args:
        checkpoint: the folder, verified.
        like: maps a dotted name to the tensor to be loaded; if that is sharded, only this rank's part is read.
        group: process group of the ranks that read together; None if this rank reads alone.

    Raises:
        ValueError: if the checkpoint contains anything but tensors and plain data.
    """
    reader = _Reader(checkpoint)
    described = reader.read_metadata().state_dict_metadata
    tensors: Tensors = {name: _empty(what, like(name)) for name, what in described.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")  # intended
        dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)  # type: ignore[arg-type]
    return join(tensors, torch.load(checkpoint / _REST, map_location="cpu", weights_only=True))


def _empty(what: Any, like: Tensor | None) -> Tensor:
    assert isinstance(what, TensorStorageMetadata)  # the unpickler accepts no other type
    if isinstance(like, DTensor) and like.shape == what.size:
        return torch.empty_like(like, dtype=what.properties.dtype)
    return torch.empty(what.size, dtype=what.properties.dtype)


class _Reader(dcp.FileSystemReader):
    """Reads shards; unpickles tensor metadata only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open(os.path.join(self.path, _METADATA), "rb") as file:
                metadata = _Unpickler(file).load()
            assert isinstance(metadata, Metadata)
            names = {where.relative_path for where in metadata.storage_data.values()}
        except (OSError, pickle.UnpicklingError, AttributeError, AssertionError, EOFError) as error:
            raise ValueError(f"{self.path}: its {_METADATA} is not a description of tensors: {error}") from error
        if bad := [name for name in names if name != os.path.basename(name)]:
            raise ValueError(f"{self.path}: its {_METADATA} names {bad[0]!r}, which lies outside the folder")
        return metadata


class _Unpickler(pickle.Unpickler):
    """Unpickles tensor metadata only; entries that would make DCP load pickled objects are rejected."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or f"{module}.{name}" in _DESCRIPTIONS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not loaded from a file")


_CHECKPOINT = "torch.distributed.checkpoint"
_DESCRIPTIONS = {
    *(
        f"{_CHECKPOINT}.metadata.{name}"
        for name in (
            "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex",
            "StorageMeta", "_MEM_FORMAT_ENCODING",
        )
    ),
    f"{_CHECKPOINT}.filesystem._StorageInfo",
    "torch.Size",
    "torch.serialization._get_layout",
    "pathlib.PosixPath",
}  # fmt: skip
