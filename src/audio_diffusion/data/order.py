"""The stream: a pure function (seed, position) -> clip and crop.

The training data is one endless sequence of clips, epoch after epoch. The clip at a position is computed from the
seed and the shards' indexes alone, so the number of ranks, workers and restarts cannot change it, and resuming only
means to continue counting. In each epoch the shards are permuted and concatenated; then positions
are shuffled inside blocks of ``shuffle_block`` clips. Every clip comes exactly once an epoch. Several data sets are
mixed in exact shares, each with epochs of its own.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from audio_diffusion.diffusion.seeding import seed_of

_KEPT_BLOCKS = 32  # shuffled blocks that a process keeps


def _generator(*key: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_of(*key)))


class ClipOrder:
    """Maps positions of the stream of one data set to clips.

    Args:
        sizes: clips in each shard.
        seed: of the shuffling; None keeps the shards' own order, the same every epoch.
        shuffle_block: clips among which positions are shuffled: larger mixes better and touches more shards at once.

    Raises:
        ValueError: if there is no clip at all.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, seed: int | None, shuffle_block: int = 65_536):
        self.sizes, self.seed, self.shuffle_block = np.asarray(sizes, dtype=np.int64), seed, shuffle_block
        self.num_clips = int(self.sizes.sum())
        if self.num_clips == 0:
            raise ValueError(f"shards: expected at least one clip, but all {len(self.sizes)} shards are empty")
        # the latest few only: positions are visited nearly in order
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._block = lru_cache(maxsize=_KEPT_BLOCKS)(self._make_block)

    def __reduce__(self) -> tuple:
        return ClipOrder, (self.sizes, self.seed, self.shuffle_block)

    def _permutation(self, length: int, *key: int | str) -> np.ndarray:
        if self.seed is None:
            return np.arange(length)
        return _generator(self.seed, *key).permutation(length)

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
        i = int(starts.searchsorted(place, side="right")) - 1
        return epoch, int(shards[i]), place - int(starts[i])

    def shards_of(self, positions: np.ndarray) -> np.ndarray:
        """The shard of each of many positions, as ``locate`` gives it; they should lie near each other."""
        found = np.empty_like(positions)
        epochs, places = np.divmod(positions, self.num_clips)
        blocks, offsets = np.divmod(places, self.shuffle_block)
        for epoch, block in set(zip(epochs.tolist(), blocks.tolist(), strict=True)):
            mine = (epochs == epoch) & (blocks == block)
            shards, starts = self._epoch(epoch)
            place = block * self.shuffle_block + self._block(epoch, block)[offsets[mine]]
            found[mine] = shards[np.searchsorted(starts, place, side="right") - 1]
        return found


class Mixture:
    """Which clip of which data set stands at which position of the endless stream.

    The shares of the data sets are exact: of the first n positions each has its share of n, to within two. Each goes
    through its own epochs: every clip of it comes exactly once in each.

    Args:
        orders: of the data sets.
        shares: of the stream that each has; any positive numbers, they are divided by their sum.
        seed: of the shuffling of the data sets among each other.

    Raises:
        ValueError: if a share is not positive.
    """

    BLOCK = 1024  # positions among which the data sets are shuffled

    def __init__(self, orders: Sequence[ClipOrder], shares: Sequence[float], seed: int | None):
        if len(shares) != len(orders) or not all(0 < share < np.inf for share in shares):
            raise ValueError(f"weights: expected {len(orders)} positive numbers, got {list(shares)}")
        self.orders, self.shares, self.seed = list(orders), [float(share) for share in shares], seed
        self.num_clips = sum(order.num_clips for order in orders)
        self._block = lru_cache(maxsize=_KEPT_BLOCKS)(self._make_block)

    def __reduce__(self) -> tuple:
        return Mixture, (self.orders, self.shares, self.seed)

    def fingerprint(self) -> str:
        """A hash of everything that determines the order."""
        digest = hashlib.sha256(repr((self.seed, self.shares, self.BLOCK)).encode())
        for order in self.orders:
            digest.update(order.sizes.tobytes() + repr((order.seed, order.shuffle_block)).encode())
        return digest.hexdigest()

    def _counts(self, num_positions: int) -> np.ndarray:
        """Number of the first positions that each data set has: its share of those left by the data sets before it."""
        counts, left = [], num_positions
        for i, share in enumerate(self.shares):
            remaining = int(left * (1 - share / sum(self.shares[i:])) + 0.5)
            counts.append(left - remaining)
            left = remaining
        return np.array(counts)

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each position in a block: the data set, and the position in that data set's own stream."""
        before, after = self._counts(block * self.BLOCK), self._counts((block + 1) * self.BLOCK)
        source = np.repeat(np.arange(len(self.orders)), after - before)
        if self.seed is not None:
            source = _generator(self.seed, "mixture", block).permutation(source)
        place = np.empty(self.BLOCK, dtype=np.int64)
        for i, first in enumerate(before):
            mine = source == i
            place[mine] = first + np.arange(mine.sum())
        return source, place

    def locate(self, position: int) -> tuple[int, int, int, int]:
        """position -> (data set, its epoch, shard, number of the crop in its shard)."""
        if len(self.orders) == 1:
            return 0, *self.orders[0].locate(position)
        block, offset = divmod(position, self.BLOCK)
        sources, places = self._block(block)
        return int(sources[offset]), *self.orders[sources[offset]].locate(int(places[offset]))

    def by_shard(self, positions: np.ndarray) -> np.ndarray:
        """The positions in the order of the shards their clips lie in; unshuffled ones are in it already."""
        if self.seed is None:
            return positions
        if len(self.orders) == 1:
            return positions[np.argsort(self.orders[0].shards_of(positions), kind="stable")]
        sources, places = np.empty_like(positions), np.empty_like(positions)
        blocks, offsets = np.divmod(positions, self.BLOCK)
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            sources[mine], places[mine] = (column[offsets[mine]] for column in self._block(block))
        shards = np.empty_like(positions)
        for i, order in enumerate(self.orders):
            shards[sources == i] = order.shards_of(places[sources == i])
        return positions[np.lexsort((positions, shards, sources))]


def shares_of(num_clips: Sequence[int], temperature: float) -> list[float]:
    """Shares of data sets by their sizes, n^(1/temperature): 1 in proportion, towards infinity all alike.

    Raises:
        ValueError: if the temperature is below 1.
    """
    if not temperature >= 1:
        raise ValueError(f"temperature: expected 1 or more, got {temperature}")
    return [float(np.exp(np.log(n) / temperature)) for n in num_clips]


class Positions(IterableDataset):
    """The positions of each batch that one rank's worker reads: batch k of the run goes to worker k modulo their count.

    Global batch k is positions ``start + k·batch_size·world_size`` and on. Its clips are dealt to the ranks by shard,
    so that a rank opens few of them, however many ranks there are. The DataLoader takes batches from its workers in
    turn, so each rank gets them in order, however many workers there are.

    Args:
        mixture: which clip stands where.
        batch_size: per rank.
        num_batches: total number of batches of each rank.
        rank: of this process.
        world_size: number of ranks.
        start: position of the first clip.
    """

    def __init__(
        self, mixture: Mixture, batch_size: int, num_batches: int, rank: int = 0, world_size: int = 1, start: int = 0
    ):
        self.mixture, self.batch_size, self.num_batches = mixture, batch_size, num_batches
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[int]]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        num_clips, first = self.batch_size * self.world_size, self.rank * self.batch_size
        for k in range(worker, self.num_batches, num_workers):
            positions = np.arange(self.start + k * num_clips, self.start + (k + 1) * num_clips)
            yield self.mixture.by_shard(positions)[first : first + self.batch_size].tolist()
