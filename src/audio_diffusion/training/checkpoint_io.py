"""Writes and reads the checkpoints of a run for Lightning; ``checkpoints`` has the file formats."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO

from audio_diffusion.checkpoints import sharded
from audio_diffusion.checkpoints.background import BackgroundWriter, Outcome
from audio_diffusion.checkpoints.files import FileRecord
from audio_diffusion.checkpoints.folder import Keep, step_of, write
from audio_diffusion.checkpoints.manifest import Manifest, hash_of
from audio_diffusion.checkpoints.snapshot import HostCopy, non_finite, num_bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Copies a checkpoint to host memory, then writes it with its manifest in the background; reads plain data only.

    One checkpoint is written at a time: the next waits for it. ``wait`` waits for the current write, ``take_outcome``
    returns its outcome. With a process group as ``storage_options`` every rank writes its own shards
    (checkpoints.sharded).
    """

    def __init__(self) -> None:
        super().__init__()
        self.world_size, self.keep = 1, Keep()
        self.keep_in: dict[str, Keep] = {}  # other rules, by the name of a folder of checkpoints
        self.num_bytes = 0  # size of the tensors of the last save
        self._copies, self._writer = HostCopy(), BackgroundWriter()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self._writer.wait()
        self._writer.take_outcome()
        job = self._write if storage_options is None else partial(self._write_shards, storage_options)
        copied = self._copies.take(checkpoint)
        self.num_bytes = num_bytes(copied) * (1 if storage_options is None else dist.get_world_size(storage_options))
        self._writer.start(partial(job, copied, Path(path)))

    def _write(self, content: dict[str, Any], path: Path) -> None:
        if problem := self._not_finite(content):
            raise ValueError(problem)
        write(path, partial(torch.save, content), partial(self._manifest, content))
        self._prune(path)

    def _prune(self, path: Path) -> None:
        self.keep_in.get(path.parent.name, self.keep).prune(path.parent, step_of(path))

    def _write_shards(self, group: dist.ProcessGroup, content: dict[str, Any], path: Path) -> None:
        problem = self._not_finite(content)
        sharded.write(path, *sharded.split(content), problem, partial(self._manifest, content), group)
        if dist.get_rank(group) == 0:
            self._prune(path)

    def _not_finite(self, content: dict[str, Any]) -> str | None:
        place = non_finite(content)
        return f"{place} is not finite, so the checkpoint would be useless" if place else None

    def _manifest(self, content: Mapping[str, Any], files: dict[str, FileRecord]) -> Manifest:
        config = content.get("config")
        return Manifest(
            step=content["global_step"],
            files=files,
            world_size=self.world_size,
            batch_size=config.get("batch_size") if isinstance(config, dict) else None,
            config=config,
            config_sha256=hash_of(config),
        )

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        if Path(path).is_dir():
            return sharded.read(Path(path))
        return torch.load(path, map_location=map_location, weights_only=True)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writer.busy

    def wait(self) -> None:
        """Waits until no checkpoint is being written."""
        self._writer.wait()

    def take_outcome(self) -> Outcome | None:
        """Returns the outcome of the last save, once; None while it is being written."""
        return self._writer.take_outcome()

    def teardown(self) -> None:
        self.wait()
