"""The DataModule: reads batches from shards, on any number of ranks and workers."""

import os
from dataclasses import replace
from typing import Any

import lightning as L
import webdataset as wds
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.batch_split import BatchSplit
from audio_diffusion.data.faults import Skipped
from audio_diffusion.data.order import ClipOrder, Mixture, Positions, StreamOrder
from audio_diffusion.data.pipeline import Batches, ReadAhead
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.find import by_name, find_held_out
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.shards.summary import summarize
from audio_diffusion.data.shared_memory import SharedSlots
from audio_diffusion.data.stream import BatchReader, ClipReader, Reading
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.data.workers import START_METHODS, ShieldedLoader, prepare
from audio_diffusion.diffusion.checks import check_at_least_one

_AHEAD = 4  # number of batches that a worker prefetches
_IN_USE = 3  # additional batches in the training process: in the step, and in transfer to the device


class AudioDataModule(L.LightningDataModule):
    """Reads training and held-out shards as streams of ``AudioBatch``.

    Args:
        train: training shards: a folder made by make_shards.py, a glob or a brace pattern, local or a URL; or several
            data sets by name, ``{music: s3://.., speech: data/speech}``, to be mixed.
        val: held-out shards, likewise; None for the val-*.tar beside the training shards. If there are none, training
            runs without validation.
        crop: format of the crops. Clips with another rate are resampled; stereo is converted to mono by averaging, mono
            to stereo by copying.
        batch_size: number of clips per optimizer step, over all ranks and accumulated batches together.
        max_steps: number of optimizer steps of the run.
        order: order of the stream of training crops; None for ``StreamOrder()``.
        reading: options of reading a clip; None for ``Reading()``. ``augment`` applies only to training crops.
        store: store for URLs; None for one without a cache on disk.
        num_workers: number of processes per rank that read and decode; 0 reads in the training process.
        worker_start: start method of workers, fork, forkserver or spawn; None for forkserver if the system has it, else
            spawn. A fork of a process that has threads may hang.

    Raises:
        ValueError: for sizes that are not positive, or weights of data sets that do not exist.
    """

    def __init__(
        self,
        train: str | dict[str, str],
        val: str | dict[str, str] | None,
        crop: CropFormat,
        batch_size: int,
        max_steps: int,
        order: StreamOrder | None = None,
        reading: Reading | None = None,
        store: RemoteStore | None = None,
        num_workers: int = 2,
        worker_start: str | None = None,
    ):
        super().__init__()
        check_at_least_one(batch_size=batch_size, max_steps=max_steps)
        if num_workers < 0:
            raise ValueError(f"num_workers: expected 0 or more, got {num_workers}")
        self.train, self.val = by_name(train), by_name(val) if val else None
        self.order, self.reading = order or StreamOrder(), reading or Reading()
        weights = self.order.weights
        if weights is not None and set(weights) != set(self.train):
            raise ValueError(
                f"order.weights: expected one for each of {', '.join(self.train)}, got {', '.join(weights)}"
            )
        if worker_start is not None and worker_start not in START_METHODS:
            raise ValueError(
                f"worker_start: expected {' or '.join(', '.join(START_METHODS).rsplit(', ', 1))}, got {worker_start!r}"
            )
        self.crop, self.batch_size, self.max_steps = crop, batch_size, max_steps
        self.store, self.num_workers, self.worker_start = store or RemoteStore(None), num_workers, worker_start
        #: place in the stream of the first clip that is still to be trained on, at step `_resume_step`
        self._resume_position, self._resume_step = 0, 0

    def prepare_data(self) -> None:
        """Indexes shards without an index, and checks that all are complete; runs on one rank of each node."""
        if self.num_workers:
            prepare(self.worker_start)  # imports what workers need meanwhile
        for pattern in [*self.train.values(), *find_held_out(self.train, self.val, self.store).values()]:
            Shards.open([pattern], self.store, self.reading.audio_member).check_sizes()

    def setup(self, stage: str | None = None) -> None:
        """Finds the shards and determines the order of the run."""
        self.train_shards = {
            name: Shards.open([pattern], self.store, self.reading.audio_member) for name, pattern in self.train.items()
        }
        self.val_patterns = find_held_out(self.train, self.val, self.store)
        #: None: nothing is held out
        self.val_shards = (
            Shards.open(list(self.val_patterns.values()), self.store, self.reading.audio_member)
            if self.val_patterns
            else None
        )
        self.mixture = self.order.mixture({name: shards.num_clips for name, shards in self.train_shards.items()})

    def summary(self, validates: bool = True) -> list[str]:
        """Returns lines about the data for the start of training, see ``data.summary``; ``validates`` is whether
        validation is requested."""
        return summarize(
            self.train,
            self.val,
            self.store,
            self.crop,
            list(self.reading.classes),
            validates,
            self.reading.audio_member,
        )

    def refused(self) -> list[Skipped]:
        """Returns the unusable members that indexing found in the shards."""
        return [skip for shards in self._all_shards() for skip in shards.refused]

    def _all_shards(self) -> list[Shards]:
        return [*self.train_shards.values(), *([self.val_shards] if self.val_shards else [])]

    def num_clips(self) -> int:
        """Returns the number of clips in all shards, training and held-out."""
        return sum(int(shards.num_clips.sum()) for shards in self._all_shards())

    def describe(self) -> dict[str, Any]:
        """Returns the data as plain values for the log: location, shards, clips, bytes, share of the stream."""
        shares = {
            name: share / sum(self.mixture.shares) for name, share in zip(self.train, self.mixture.shares, strict=True)
        }
        return {
            name: {
                "pattern": pattern,
                "shards": len(shards.paths),
                "clips": int(shards.num_clips.sum()),
                "bytes": int(shards.num_bytes.sum()),
                **({"share": shares[name]} if name in shares else {}),
            }
            for name, pattern, shards in [
                *((name, self.train[name], shards) for name, shards in self.train_shards.items()),
                *([("val", ", ".join(self.val_patterns.values()), self.val_shards)] if self.val_shards else []),
            ]
        }

    def _per_rank(self) -> int:
        """Returns the number of clips in one batch of one rank."""
        assert self.trainer is not None
        nodes = self.trainer.num_nodes
        split = BatchSplit(
            self.batch_size, nodes, self.trainer.world_size // nodes, self.trainer.accumulate_grad_batches
        )
        return split.clips

    def _loader(self, reader: ClipReader, positions: Positions, length: int) -> DataLoader:
        shape, slots = (positions.batch_size, *self.crop.shape), None
        if hasattr(os, "memfd_create"):  # Linux
            num_slots = _IN_USE + (_AHEAD if self.num_workers else 0)
            slots = SharedSlots(max(self.num_workers, 1), num_slots, shape)
        batches = Batches(
            positions,
            *([ReadAhead(reader, self.store)] if any(shards.is_remote for shards in reader.sources) else []),
            wds.map(BatchReader(reader, shape[1:], slots)),
        )
        batches.length = length
        return ShieldedLoader(
            batches,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            prefetch_factor=_AHEAD if self.num_workers else None,
            multiprocessing_context=self.worker_start if self.num_workers else None,
        )

    def _count_batches_from(self, done: int) -> None:
        """Sets Lightning's counters of batches to ``done``, so that they agree with the loader.

        The counters in a checkpoint refer to the gradient accumulation used then, and include batches of an unfinished
        step. Lightning uses them to find the end of the loader and the batch that ends an optimizer step.
        """
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        current: Any = progress.current
        unfinished = current.processed - current.completed  # 1 in a checkpoint saved after a batch
        current.ready = current.started = current.processed = done
        current.completed = done - unfinished
        progress.is_last_batch = False  # True if a finished run continues with more steps

    def train_dataloader(self) -> DataLoader:
        """Returns the batches from the resumed position to the end of the run."""
        assert self.trainer is not None
        per_rank, accumulate = self._per_rank(), self.trainer.accumulate_grad_batches
        self._count_batches_from(self._resume_step * accumulate)
        positions = Positions(
            self.mixture,
            per_rank,
            max(self.max_steps - self._resume_step, 0) * accumulate,
            self.trainer.global_rank,
            self.trainer.world_size,
            self._resume_position,
        )
        reader = ClipReader(
            list(self.train_shards.values()),
            self.mixture,
            self.crop.sample_rate,
            self.reading,
            self.order.seed,
            crops_per_clip=self.order.crops_per_clip,
        )
        # the length includes finished batches, because Lightning counts them too
        return self._loader(reader, positions, self.max_steps * accumulate)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Returns the start of every held-out clip in order; the last batch is filled with empty slots.

        If nothing is held out, returns an empty list, with which Lightning runs without validation.
        """
        assert self.trainer is not None
        per_rank, world_size = self._per_rank(), self.trainer.world_size
        if self.val_shards is None:
            return []
        reader = self._reader_from_start(self.val_shards)
        num_batches = -(-reader.mixture.num_clips // (per_rank * world_size))
        positions = Positions(reader.mixture, per_rank, num_batches, self.trainer.global_rank, world_size)
        return self._loader(reader, positions, num_batches)

    def _reader_from_start(self, shards: Shards) -> ClipReader:
        """Creates a reader of the start of each clip, in the order of the shards."""
        mixture = Mixture([ClipOrder(shards.num_clips, None)], [1], None)
        reading = replace(self.reading, augment=None)
        return ClipReader([shards], mixture, self.crop.sample_rate, reading, None, mixture.num_clips)

    def held_out(self, num: int) -> AudioBatch:
        """Returns the first ``num`` held-out clips, the same on every rank; if there are fewer, they are repeated.

        If nothing is held out, clips of the first training set are used.
        """
        reader = self._reader_from_start(self.val_shards or next(iter(self.train_shards.values())))
        read = BatchReader(reader, self.crop.shape, None)
        batch = read([i % reader.mixture.num_clips for i in range(num)])
        assert isinstance(batch, AudioBatch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the stream of the first clip that no finished optimizer step has used."""
        assert self.trainer is not None
        done = self.trainer.global_step - self._resume_step
        position = self._resume_position + done * self.batch_size
        return {"position": position, "step": self.trainer.global_step, "order": self.mixture.fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["order"] != self.mixture.fingerprint():
            rank_zero_warn(
                "data: the shards, or the options that determine their order (seed, shuffle_block, weights, "
                "crops_per_clip), differ from those of the checkpoint. The run continues at position "
                f"{state_dict['position']} of the new order: in this epoch some clips are repeated, others are missing"
            )
        self._resume_position, self._resume_step = state_dict["position"], state_dict["step"]
