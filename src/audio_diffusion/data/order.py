"""The stream: a pure function (seed, position) -> clip and crop.

The training data is one endless sequence of clips, epoch after epoch. The clip at a position depends only on the seed
and the shards' indexes, not on the number of ranks, workers and restarts; to resume, it is enough to know the next
position. In each epoch the shards are permuted and concatenated; then positions are shuffled inside blocks of
``shuffle_block`` clips. Each epoch contains every clip exactly once. Several data sets are mixed in exact shares, and
each has its own epochs.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.diffusion.seeding import seed_of

_KEPT_BLOCKS = 32  # number of shuffled blocks that a process caches


def _generator(*key: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_of(*key)))


class ClipOrder:
    """Maps positions of the stream of one data set to clips.

    Args:
        sizes: number of clips in each shard.
        seed: seed of the shuffling; None keeps the shards' own order in every epoch.
        shuffle_block: number of clips that are shuffled together; larger values mix better and keep more shards open.

    Raises:
        ValueError: if there is no clip at all.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, seed: int | None, shuffle_block: int = 65_536):
        self.sizes, self.seed, self.shuffle_block = np.asarray(sizes, dtype=np.int64), seed, shuffle_block
        self.num_clips = int(self.sizes.sum())
        if self.num_clips == 0:
            raise ValueError(f"shards: expected at least one clip, but all {len(self.sizes)} shards are empty")
        # a few of the latest are enough, since positions are visited nearly in order
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._block = lru_cache(maxsize=_KEPT_BLOCKS)(self._make_block)

    def __reduce__(self) -> tuple:
        return ClipOrder, (self.sizes, self.seed, self.shuffle_block)

    def _permutation(self, length: int, *key: int | str) -> np.ndarray:
        if self.seed is None:
            return np.arange(length)
        return _generator(self.seed, *key).permutation(length)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shards in the order of this epoch, and the position of the first clip of each."""
        shards = self._permutation(len(self.sizes), "shards", epoch)
        sizes = self.sizes[shards]
        return shards, np.cumsum(sizes) - sizes

    def _make_block(self, epoch: int, block: int) -> np.ndarray:
        length = min(self.shuffle_block, self.num_clips - block * self.shuffle_block)
        return self._permutation(length, "block", epoch, block)

    def locate(self, position: int) -> tuple[int, int, int]:
        """Returns (epoch, shard, index of the clip in its shard) of a position."""
        epoch, place = divmod(position, self.num_clips)
        block, offset = divmod(place, self.shuffle_block)
        place = block * self.shuffle_block + int(self._block(epoch, block)[offset])
        shards, starts = self._epoch(epoch)
        i = int(starts.searchsorted(place, side="right")) - 1
        return epoch, int(shards[i]), place - int(starts[i])

    def shards_of(self, positions: np.ndarray) -> np.ndarray:
        """Returns the shard of each position, like ``locate``; fast for positions that are close together."""
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
    """Maps positions of the stream to clips of several data sets.

    The shares of the data sets are exact: among the first n positions, each data set has its share of n, to within
    two. Each data set has its own epochs, which contain every clip exactly once.

    Args:
        orders: the order of clips in each data set.
        shares: share of each data set in the stream; any positive numbers, which are divided by their sum.
        seed: seed of the shuffling among data sets; None does not shuffle.

    Raises:
        ValueError: if a share is not positive.
    """

    BLOCK = 1024  # number of positions that are shuffled together

    def __init__(self, orders: Sequence[ClipOrder], shares: Sequence[float], seed: int | None):
        if len(shares) != len(orders) or not all(0 < share < np.inf for share in shares):
            raise ValueError(f"weights: expected {len(orders)} positive numbers, got {list(shares)}")
        self.orders, self.shares, self.seed = list(orders), [float(share) for share in shares], seed
        self.num_clips = sum(order.num_clips for order in orders)
        self._block = lru_cache(maxsize=_KEPT_BLOCKS)(self._make_block)

    def __reduce__(self) -> tuple:
        return Mixture, (self.orders, self.shares, self.seed)

    def fingerprint(self) -> str:
        """Returns a hash of everything that determines the order."""
        digest = hashlib.sha256(repr((self.seed, self.shares, self.BLOCK)).encode())
        for order in self.orders:
            digest.update(order.sizes.tobytes() + repr((order.seed, order.shuffle_block)).encode())
        return digest.hexdigest()

    def _counts(self, num_positions: int) -> np.ndarray:
        """Returns how many of the first ``num_positions`` each data set has: its share of those left by the data sets
        before it."""
        counts, left = [], num_positions
        for i, share in enumerate(self.shares):
            remaining = int(left * (1 - share / sum(self.shares[i:])) + 0.5)
            counts.append(left - remaining)
            left = remaining
        return np.array(counts)

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for each position in a block, the data set and the position in that data set's own stream."""
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
        """Returns (data set, its epoch, shard, index of the clip in its shard) of a position."""
        if len(self.orders) == 1:
            return 0, *self.orders[0].locate(position)
        block, offset = divmod(position, self.BLOCK)
        sources, places = self._block(block)
        return int(sources[offset]), *self.orders[sources[offset]].locate(int(places[offset]))

    def by_shard(self, positions: np.ndarray) -> np.ndarray:
        """Sorts positions by the shards of their clips; unshuffled positions are already sorted."""
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
    """Returns shares of data sets, n^(1/temperature): 1 is in proportion to their sizes, infinity is equal shares.

    Raises:
        ValueError: if the temperature is below 1.
    """
    if not temperature >= 1:
        raise ValueError(f"temperature: expected 1 or more, got {temperature}")
    return [float(np.exp(np.log(n) / temperature)) for n in num_clips]


@dataclass(frozen=True)
class StreamOrder:
    """How the stream of training crops is ordered.

    Args:
        seed: seed of the order and of the crops.
        shuffle_block: number of crops among which the order is shuffled.
        weights: of each data set in the mixture, by name; None: by size and ``temperature``.
        temperature: shares are n^(1/temperature) for data sets of n clips: 1 in proportion, large all alike.
        crops_per_clip: number of crops of each clip in an epoch. More than 1 pays where a visit costs more than a crop:
            clips much longer than the crop in remote shards, or MP3.

    Raises:
        ValueError: if ``shuffle_block`` or ``crops_per_clip`` is below 1.
    """

    seed: int = 0
    shuffle_block: int = 65_536
    weights: dict[str, float] | None = None
    temperature: float = 1.0
    crops_per_clip: int = 1

    def __post_init__(self) -> None:
        check_at_least_one(shuffle_block=self.shuffle_block, crops_per_clip=self.crops_per_clip)

    def mixture(self, sizes: Mapping[str, Sequence[int] | np.ndarray]) -> Mixture:
        """Returns the mixture of data sets, given the number of clips in each shard of each data set by name."""
        orders = []
        for name, num_clips in sizes.items():
            # with several, each has a seed of its own: adding one does not change the order of the others
            seed = seed_of(self.seed, "source", name) if len(sizes) > 1 else self.seed
            orders.append(ClipOrder(np.asarray(num_clips) * self.crops_per_clip, seed, self.shuffle_block))
        if self.weights is not None:
            return Mixture(orders, [self.weights[name] for name in sizes], self.seed)
        return Mixture(orders, shares_of([order.num_clips for order in orders], self.temperature), self.seed)


class Positions(IterableDataset):
    """Yields the positions of each batch that one worker of a rank reads: worker ``k % num_workers`` reads batch k.

    Global batch k starts at position ``start + k·batch_size·world_size``. Its clips are distributed to the ranks by
    shard, so that each rank opens few shards. The DataLoader takes batches from its workers in turn, so each rank gets
    its batches in order for any number of workers.

    Args:
        mixture: maps positions to clips.
        batch_size: number of clips per batch and rank.
        num_batches: total number of batches of each rank.
        rank: rank of this process.
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
