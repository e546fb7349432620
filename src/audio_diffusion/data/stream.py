"""The stream: a pure function (seed, position) -> clip and crop.

The training data is one endless sequence of clips, epoch after epoch. Which clip stands at a position follows by
arithmetic from the seed and the shards' indexes, so the number of ranks, workers and restarts cannot change it,
and to resume is to go on counting. In each epoch the shards are permuted and laid end to end; then positions
are shuffled inside blocks of ``shuffle_block`` clips. Every clip comes exactly once an epoch.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from audio_diffusion.data.audio import UnusableAudio, read_crop
from audio_diffusion.data.batch import Clip, Skipped
from audio_diffusion.data.index import ShardIndex
from audio_diffusion.data.shards import ShardReader
from audio_diffusion.seeding import seed_of


class ClipOrder:
    """Which clip stands at which position.

    Args:
        sizes: clips in each shard.
        seed: of the shuffling; None keeps the shards' own order, the same every epoch.
        shuffle_block: clips among which positions are shuffled: larger mixes better and touches more shards at once.

    Raises:
        ValueError: if there is no clip at all.
    """

    def __init__(self, sizes: Sequence[int], seed: int | None, shuffle_block: int = 8192):
        self.sizes, self.seed, self.shuffle_block = np.asarray(sizes, dtype=np.int64), seed, shuffle_block
        self.num_clips = int(self.sizes.sum())
        if self.num_clips == 0:
            raise ValueError(f"shards: expected at least one clip, but all {len(self.sizes)} shards are empty")
        # the latest few only: positions are visited nearly in order
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._block = lru_cache(maxsize=4)(self._make_block)

    def __reduce__(self) -> tuple:
        return ClipOrder, (self.sizes, self.seed, self.shuffle_block)

    def _permutation(self, length: int, *key: int | str) -> np.ndarray:
        if self.seed is None:
            return np.arange(length)
        return np.random.Generator(np.random.PCG64(seed_of(self.seed, *key))).permutation(length)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of this epoch, and where each one's first clip stands."""
        shards = self._permutation(len(self.sizes), "shards", epoch)
        sizes = self.sizes[shards]
        return shards, np.cumsum(sizes) - sizes

    def _make_block(self, epoch: int, block: int) -> np.ndarray:
        length = min(self.shuffle_block, self.num_clips - block * self.shuffle_block)
        return self._permutation(length, "block", epoch, block)

    def locate(self, position: int) -> tuple[int, int, int]:
        """position -> (epoch, shard, number of the clip in its shard)."""
        epoch, place = divmod(position, self.num_clips)
        block, offset = divmod(place, self.shuffle_block)
        place = block * self.shuffle_block + int(self._block(epoch, block)[offset])
        shards, starts = self._epoch(epoch)
        i = int(np.searchsorted(starts, place, side="right")) - 1
        return epoch, int(shards[i]), place - int(starts[i])


class Positions(IterableDataset):
    """The positions that one rank's worker reads: batch k of the run goes to worker k modulo their number.

    Global batch k is positions ``start + k·batch_size·world_size`` and on; rank r takes its r-th part. The DataLoader
    takes batches from its workers in turn, so each rank gets them in order, however many workers there are.

    Args:
        batch_size: per rank.
        num_batches: how many batches in all; every rank makes exactly as many.
        rank: of this process.
        world_size: number of ranks.
        start: position of the first clip.
    """

    def __init__(self, batch_size: int, num_batches: int, rank: int = 0, world_size: int = 1, start: int = 0):
        self.batch_size, self.num_batches = batch_size, num_batches
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        for k in range(worker, self.num_batches, num_workers):
            first = self.start + (k * self.world_size + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)


class ClipReader:
    """position -> ``Clip``: finds, decodes, crops and labels one clip.

    Args:
        indexes: of the shards.
        order: which clip stands where.
        sample_rate: of the crop, Hz.
        channels: of the crop.
        num_samples: T of the crop.
        classes: class names; empty ignores labels. A clip whose label is none of them is skipped.
        seed: of the crops' places; None takes the start of each clip.
        last: positions from here on are empty slots, which fill the last batch of a pass; None: endless.
    """

    def __init__(
        self,
        indexes: Sequence[ShardIndex],
        order: ClipOrder,
        sample_rate: int,
        channels: int,
        num_samples: int,
        classes: Sequence[str],
        seed: int | None,
        last: int | None = None,
    ):
        self.reader, self.order = ShardReader(indexes), order
        self.sample_rate, self.channels, self.num_samples = sample_rate, channels, num_samples
        self.label_of = {name: i for i, name in enumerate(classes)}
        self.seed, self.last = seed, last

    def __call__(self, position: int) -> Clip:
        if self.last is not None and position >= self.last:
            return Clip(position, "", None, 0, -1)
        epoch, shard, number = self.order.locate(position)
        index = self.reader.indexes[shard]
        key = index.keys[number]
        where = 0.0 if self.seed is None else seed_of(self.seed, "crop", epoch, key) / 2**63
        try:
            label = self._label(self.reader.meta(shard, number))
            audio, num_valid = read_crop(
                self.reader.audio(shard, number), self.sample_rate, self.channels, self.num_samples, where
            )
        except (UnusableAudio, ValueError, RecursionError) as error:
            return Clip(
                position, key, None, 0, -1, Skipped(index.path, key, getattr(error, "kind", "metadata"), str(error))
            )
        return Clip(position, key, audio, num_valid, label)

    def _label(self, meta: dict) -> int:
        if not self.label_of:
            return -1
        label = meta.get("label")
        if not isinstance(label, str) or label not in self.label_of:
            raise ValueError(f"label {label!r} is not one of {', '.join(self.label_of)}")
        return self.label_of[label]
