"""Snapshots of power-function averages of the weights: ``ema/step_<step>.ckpt`` with a manifest beside each.

They are written and verified like checkpoints (``checkpoints.folder``), and contain only the averages of the network's
weights, from which ``inference.averages`` rebuilds averages of other lengths. A file has the keys of ``Snapshot`` as
plain data; tensors in float16 are divided by their largest absolute value, since small weights would otherwise
underflow in float16.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_diffusion.checkpoints import folder as folders
from audio_diffusion.checkpoints.files import FileRecord, remove, sync_folder
from audio_diffusion.checkpoints.manifest import Manifest, hash_of


@dataclass
class Snapshot:
    """The averages of one step.

    Args:
        step: optimizer step of the run.
        origin: the step after which the averages began; snapshots of different origins cannot be combined.
        num_updates: number of averaged optimizer steps, without those that the guard skipped.
        lengths: relative lengths (sigma_rel) of the averages.
        averages: for each length, the averaged tensors by name.
        rest: the other entries of the network's state dict, such as buffers.
        scales: for each length, the factor of each tensor if they are in float16; otherwise empty.
    """

    step: int
    origin: int
    num_updates: int
    lengths: Sequence[float]
    averages: Sequence[Mapping[str, Tensor]]
    rest: Mapping[str, Any] = field(default_factory=dict)
    scales: Sequence[Mapping[str, float]] = ()

    def halved(self) -> "Snapshot":
        """Returns the snapshot with its averages in float16, each tensor divided by its largest absolute value."""
        scales = [{name: value.abs().max().item() or 1.0 for name, value in one.items()} for one in self.averages]
        averages = [
            {name: (value / scale[name]).half() for name, value in one.items()}
            for one, scale in zip(self.averages, scales, strict=True)
        ]
        return Snapshot(self.step, self.origin, self.num_updates, self.lengths, averages, self.rest, scales)

    def tensor(self, index: int, name: str) -> Tensor:
        """Returns one tensor of the average of ``lengths[index]`` in float64."""
        scale = self.scales[index].get(name, 1.0) if self.scales else 1.0
        return self.averages[index][name].double() * scale

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Returns the average of ``lengths[index]`` in float64."""
        return {name: self.tensor(index, name) for name in self.averages[index]}


def write(folder: Path, content: Mapping[str, Any], world_size: int = 1) -> None:
    """Writes a snapshot, given as ``vars(snapshot)``, with a manifest, and reads it back.

    Raises:
        OSError: if it cannot be written.
    """

    def describe(files: dict[str, FileRecord]) -> Manifest:
        return Manifest(content["step"], files, world_size, None, None, hash_of(None))

    folders.write(folders.path_of(folder, content["step"]), partial(torch.save, dict(content)), describe)


def read(path: Path) -> Snapshot:
    """Reads a snapshot without running any code in it.

    Raises:
        ValueError: if the file is damaged or is not a snapshot.
    """
    if problem := folders.problem_of(path):
        raise ValueError(problem)
    try:
        return Snapshot(**torch.load(path, "cpu", weights_only=True, mmap=True))
    except (TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path.name}: not a snapshot of averages: {error}") from error


def rewind(folder: Path, step: int, every_n_steps: int) -> int:
    """Removes files that the run will write again when it continues after ``step``; returns how many were later.

    These are the snapshots of later steps, one that was written at ``step`` only because the run stopped there, and
    unfinished files. Manifests are removed first.
    """
    folders.recover(folder)
    found = [path for path in folders.all_in(folder) if folders.step_of(path) >= step]
    gone = [path for path in found if folders.step_of(path) > step or step % every_n_steps]
    for path in gone:
        folders.manifest_of(path).unlink(missing_ok=True)
        sync_folder(folder)
        remove(path)
    return sum(folders.step_of(path) > step for path in gone)
