"""The DataModule: shards in, batches out, on any number of ranks and workers."""

from functools import partial
from typing import Any

import lightning as L
import webdataset as wds
from torch.utils.data import DataLoader

from audio_diffusion.data.batch import Skipped, collate
from audio_diffusion.data.index import ShardIndex, load_index
from audio_diffusion.data.shards import expand, held_out
from audio_diffusion.data.stream import ClipOrder, ClipReader, Positions


class AudioDataModule(L.LightningDataModule):
    """Training and held-out shards as streams of ``AudioBatch``.

    Args:
        train: training shards: a folder made by make_shards.py, a glob or a brace pattern.
        val: held-out shards, likewise; None: the val-*.tar beside the training shards.
        sample_rate: of the crops, Hz; clips of another rate are resampled.
        channels: of the crops; stereo becomes mono by the mean, mono becomes stereo by copying.
        num_samples: T of the crops; shorter clips are padded with zeros, and the mask says where.
        classes: class names, in the order of the network's labels; empty for unconditional training.
        batch_size: clips per optimizer step, over all ranks and accumulated batches together.
        max_steps: optimizer steps of the run.
        seed: of the order and the crops.
        num_workers: processes per rank that read and decode; 0 reads in the training process.
        shuffle_block: clips among which the order is shuffled.

    Raises:
        ValueError: for sizes that are not positive.
    """

    def __init__(
        self,
        train: str,
        val: str | None,
        sample_rate: int,
        channels: int,
        num_samples: int,
        classes: list[str],
        batch_size: int,
        max_steps: int,
        seed: int = 0,
        num_workers: int = 2,
        shuffle_block: int = 8192,
    ):
        super().__init__()
        sizes = {
            "sample_rate": sample_rate, "channels": channels, "num_samples": num_samples,
            "batch_size": batch_size, "max_steps": max_steps, "shuffle_block": shuffle_block,
        }  # fmt: skip
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.train, self.val = train, val or held_out(train)
        self.sample_rate, self.channels, self.num_samples = sample_rate, channels, num_samples
        self.classes, self.batch_size, self.max_steps = list(classes), batch_size, max_steps
        self.seed, self.num_workers, self.shuffle_block = seed, num_workers, shuffle_block
        #: place in the stream of the first clip that is still to be trained on, at step `_resume_step`
        self._resume_position, self._resume_step = 0, 0

    def setup(self, stage: str | None = None) -> None:
        """Reads the shards' indexes, making those that are missing."""
        self.train_indexes = [load_index(path) for path in expand(self.train)]
        self.val_indexes = [load_index(path) for path in expand(self.val)]
        self.train_order = ClipOrder([len(i.keys) for i in self.train_indexes], self.seed, self.shuffle_block)
        self.val_order = ClipOrder([len(i.keys) for i in self.val_indexes], None)

    def refused(self) -> list[Skipped]:
        """What the indexes found unusable in the shards."""
        return [skip for index in self.train_indexes + self.val_indexes for skip in index.skipped()]

    def describe(self) -> dict[str, Any]:
        """The data as plain values, for the log: shards, clips, bytes."""
        return {
            name: {
                "pattern": pattern,
                "shards": len(indexes),
                "clips": sum(len(index.keys) for index in indexes),
                "bytes": sum(index.num_bytes for index in indexes),
            }
            for name, pattern, indexes in (
                ("train", self.train, self.train_indexes), ("val", self.val, self.val_indexes)
            )
        }  # fmt: skip

    def _per_rank(self) -> int:
        """Clips in one batch of one rank."""
        assert self.trainer is not None
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size: expected a multiple of {parts} ({self.trainer.world_size} devices × "
                f"{self.trainer.accumulate_grad_batches} accumulated batches), got {self.batch_size}"
            )
        return self.batch_size // parts

    def _loader(
        self,
        indexes: list[ShardIndex],
        order: ClipOrder,
        positions: Positions,
        length: int,
        seed: int | None,
        last: int | None,
    ) -> DataLoader:
        reader = ClipReader(indexes, order, self.sample_rate, self.channels, self.num_samples, self.classes, seed, last)
        to_batch = partial(collate, channels=self.channels, num_samples=self.num_samples, with_label=bool(self.classes))
        batches = wds.DataPipeline(
            positions,
            wds.map(reader),
            wds.batched(positions.batch_size, collation_fn=to_batch, partial=False),
        ).with_length(length, silent=True)
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            prefetch_factor=4 if self.num_workers else None,
        )

    def _count_batches_from(self, done: int) -> None:
        """Makes Lightning count the run's batches as if ``done`` lay behind it, as the loader does.

        Its own counts come from the checkpoint: in batches of the accumulation there was then, with those of an
        unfinished step. They decide when the loader is at its end and which batch ends an optimizer step.
        """
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        current: Any = progress.current
        unfinished = current.processed - current.completed  # 1 in a checkpoint saved after a batch
        current.ready = current.started = current.processed = done
        current.completed = done - unfinished
        progress.is_last_batch = False  # it was, where a finished run goes on to more steps

    def train_dataloader(self) -> DataLoader:
        """Batches from the resumed position to the end of the run, in the order (seed, position) says."""
        assert self.trainer is not None
        per_rank, accumulate = self._per_rank(), self.trainer.accumulate_grad_batches
        self._count_batches_from(self._resume_step * accumulate)
        positions = Positions(
            per_rank,
            max(self.max_steps - self._resume_step, 0) * accumulate,
            self.trainer.global_rank,
            self.trainer.world_size,
            self._resume_position,
        )
        num_batches = self.max_steps * accumulate  # with those that lie behind, as Lightning counts them
        return self._loader(self.train_indexes, self.train_order, positions, num_batches, self.seed, None)

    def val_dataloader(self) -> DataLoader:
        """All held-out clips once, the start of each, in order; the last batch is filled with empty slots."""
        assert self.trainer is not None
        per_rank, world_size = self._per_rank(), self.trainer.world_size
        num_clips = self.val_order.num_clips
        num_batches = -(-num_clips // (per_rank * world_size))
        positions = Positions(per_rank, num_batches, self.trainer.global_rank, world_size)
        return self._loader(self.val_indexes, self.val_order, positions, num_batches, None, num_clips)

    def state_dict(self) -> dict[str, Any]:
        """The stream's position: of the first clip that no finished optimizer step has seen."""
        assert self.trainer is not None
        done = self.trainer.global_step - self._resume_step
        return {"position": self._resume_position + done * self.batch_size, "step": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume_position, self._resume_step = state_dict["position"], state_dict["step"]
