"""The order is a pure function of (seed, position): not of ranks, workers, restarts, or who has asked before."""

import pickle
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_diffusion.data.order import ClipOrder, Mixture, Positions, shares_of

sizes_of_shards = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)
few = settings(max_examples=50, deadline=None)


def epoch_of(order: ClipOrder, epoch: int) -> list[tuple[int, int]]:
    """(shard, clip) of each position of an epoch."""
    first = epoch * order.num_clips
    located = [order.locate(position) for position in range(first, first + order.num_clips)]
    assert {e for e, _, _ in located} == {epoch}
    return [(shard, clip) for _, shard, clip in located]


# --- the order


@given(sizes_of_shards, st.integers(0, 2**40) | st.none(), st.integers(1, 40))
@few
def test_each_clip_comes_exactly_once_an_epoch(sizes: list[int], seed: int | None, block: int) -> None:
    order = ClipOrder(sizes, seed, block)
    every = Counter((shard, clip) for shard, size in enumerate(sizes) for clip in range(size))
    for epoch in (0, 1, 5):
        assert Counter(epoch_of(order, epoch)) == every


@given(st.integers(1, 9), st.integers(2, 9), st.integers(1, 30), st.integers(0, 99))
@few
def test_a_block_touches_few_shards(size: int, num_shards: int, block: int, seed: int) -> None:
    clips = epoch_of(ClipOrder([size] * num_shards, seed, block), 0)
    for first in range(0, len(clips), block):
        shards = {shard for shard, _ in clips[first : first + block]}
        assert len(shards) <= (min(block, len(clips)) - 1) // size + 2


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    sizes = [10] * 10
    orders = [
        epoch_of(ClipOrder(sizes, seed, block), epoch) for seed in (0, 1) for block in (7, 1000) for epoch in (0, 1, 2)
    ]
    agreeing = [np.mean([a == b for a, b in zip(x, y, strict=True)]) for i, x in enumerate(orders) for y in orders[:i]]
    assert max(agreeing) < 0.15  # by chance 1 %
    in_place = [np.mean([s * 10 + c == i for i, (s, c) in enumerate(order)]) for order in orders]
    assert max(in_place) < 0.15


def test_a_single_shard_is_shuffled_anew_each_epoch() -> None:
    order = ClipOrder([30], 0)
    epochs = [epoch_of(order, epoch) for epoch in range(3)]
    assert all(epochs[i] != epochs[j] for i in range(3) for j in range(i))


def test_shards_change_places_from_epoch_to_epoch_even_where_blocks_are_small() -> None:
    order = ClipOrder([4] * 6, 0, shuffle_block=1)
    shards = [[shard for shard, _ in epoch_of(order, epoch)][::4] for epoch in range(4)]
    assert all(sorted(each) == list(range(6)) for each in shards)
    assert len({tuple(each) for each in shards}) > 1


def test_inside_a_block_every_order_is_as_likely() -> None:
    firsts = Counter(ClipOrder([4], seed).locate(0)[2] for seed in range(400))
    assert sorted(firsts) == [0, 1, 2, 3]
    assert min(firsts.values()) > 70


def test_without_a_seed_the_shards_keep_their_order() -> None:
    order = ClipOrder([2, 0, 3], None)
    in_order = [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert epoch_of(order, 0) == epoch_of(order, 3) == in_order


@given(sizes_of_shards, st.integers(0, 99), st.integers(1, 40), st.data())
@few
def test_asking_in_any_order_anew_or_after_pickling_gives_the_same(
    sizes: list[int], seed: int, block: int, data: st.DataObject
) -> None:
    order = ClipOrder(sizes, seed, block)
    positions = data.draw(st.lists(st.integers(0, 5 * sum(sizes)), max_size=30))
    located = [order.locate(position) for position in positions]
    pickled = pickle.loads(pickle.dumps(order))
    for other in (ClipOrder(sizes, seed, block), ClipOrder(np.array(sizes), seed, block), pickled):
        assert [other.locate(position) for position in reversed(positions)] == located[::-1]


def test_the_order_never_changes_between_versions() -> None:
    """A run that is resumed with a newer version must not be dealt other clips: these are today's."""
    order = ClipOrder([3, 5, 2], seed=1, shuffle_block=4)
    assert [10 * shard + clip for shard, clip in epoch_of(order, 0)] == [0, 1, 10, 2, 14, 13, 12, 11, 20, 21]


def test_no_clip_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="shards: expected at least one clip, but all 2 shards are empty"):
        ClipOrder([0, 0], 0)


# --- ranks and workers


def as_worker(positions: Positions, worker: int, num_workers: int) -> Iterator[list[int]]:
    """The batches of positions that a DataLoader's worker reads; 0 workers: the process itself."""
    info = SimpleNamespace(id=worker, num_workers=num_workers) if num_workers else None
    with mock.patch("audio_diffusion.data.order.get_worker_info", return_value=info):
        return iter(list(positions))


def batches_of_rank(
    mixture: Mixture, rank: int, world_size: int, num_workers: int, batch_size: int, num_batches: int, start: int
) -> list[list[int]]:
    """What the DataLoader makes of the workers' streams: a batch of each in turn."""
    positions = Positions(mixture, batch_size, num_batches, rank, world_size, start)
    streams = [as_worker(positions, worker, num_workers) for worker in range(max(num_workers, 1))]
    made = [next(streams[k % len(streams)]) for k in range(num_batches)]
    assert all(next(stream, None) is None for stream in streams)
    assert all(len(batch) == batch_size for batch in made)
    return made


def global_batches(
    mixture: Mixture, world_size: int, num_workers: int, global_batch: int, num_batches: int, start: int = 0
) -> list[list[int]]:
    """The positions of each global batch, those of all ranks in turn."""
    ranks = [
        batches_of_rank(mixture, rank, world_size, num_workers, global_batch // world_size, num_batches, start)
        for rank in range(world_size)
    ]
    return [[position for batch in parts for position in batch] for parts in zip(*ranks, strict=True)]


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    """One to three data sets of shards of any sizes, empty ones among them."""
    sizes = draw(st.lists(sizes_of_shards, min_size=1, max_size=3))
    shares = draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    seed, block = draw(st.integers(0, 99)), draw(st.integers(1, 40))
    return Mixture([ClipOrder(each, seed, block) for each in sizes], shares, seed)


@given(mixtures(), st.integers(1, 8), st.integers(0, 4), st.integers(1, 3), st.integers(0, 9), st.integers(0, 1000))
@few
def test_a_global_batch_is_the_same_on_any_number_of_ranks_and_workers(
    mixture: Mixture, world_size: int, num_workers: int, per_rank: int, num_batches: int, start: int
) -> None:
    size = per_rank * world_size
    batches = global_batches(mixture, world_size, num_workers, size, num_batches, start)
    firsts = range(start, start + size * num_batches, size)
    assert [sorted(batch) for batch in batches] == [list(range(first, first + size)) for first in firsts]
    assert batches == global_batches(mixture, 1, 0, size, num_batches, start)


@given(mixtures(), st.integers(1, 8), st.integers(0, 4), st.integers(1, 3), st.integers(0, 9), st.integers(0, 9))
@few
def test_accumulated_batches_are_parts_of_the_same_global_batch(
    mixture: Mixture, world_size: int, num_workers: int, accumulate: int, num_steps: int, start: int
) -> None:
    size = 2 * world_size * accumulate
    micro = global_batches(mixture, world_size, num_workers, size // accumulate, num_steps * accumulate, start)
    flat = [position for batch in micro for position in batch]
    steps = [sorted(flat[k * size : (k + 1) * size]) for k in range(num_steps)]
    assert steps == [sorted(batch) for batch in global_batches(mixture, 1, 0, size, num_steps, start)]


numbers_of_ranks = st.sampled_from([1, 2, 3, 4, 6, 8])


@given(mixtures(), numbers_of_ranks, st.integers(0, 4), numbers_of_ranks, st.integers(0, 4), st.integers(0, 3))
@few
def test_going_on_from_any_step_on_other_machines_gives_the_same_batches(
    mixture: Mixture, world_before: int, workers_before: int, world_after: int, workers_after: int, stop: int
) -> None:
    size = 24  # of any of these numbers of ranks a multiple
    before = global_batches(mixture, world_before, workers_before, size, stop)
    after = global_batches(mixture, world_after, workers_after, size, 3 - stop, start=stop * size)
    assert before + after == global_batches(mixture, 1, 0, size, 3)


@given(mixtures(), st.integers(0, 5000), st.integers(1, 300))
@few
def test_a_global_batch_is_in_the_order_of_its_shards(mixture: Mixture, first: int, size: int) -> None:
    positions = mixture.by_shard(np.arange(first, first + size))
    located = [mixture.locate(position) for position in positions.tolist()]
    places = [(source, shard) for source, _, shard, _ in located]
    assert places == sorted(places)
    assert sorted(positions.tolist()) == list(range(first, first + size))


def test_a_rank_opens_few_shards_however_many_ranks_there_are() -> None:
    mixture = Mixture([ClipOrder([100] * 200, 0, shuffle_block=4096)], [1], 0)
    for rank in (0, 17, 63):
        (batch,) = batches_of_rank(mixture, rank, 64, 0, 64, 1, start=4096)
        assert len({mixture.locate(position)[2] for position in batch}) <= 3  # of 41 in the block


def test_held_out_clips_keep_their_order_past_the_end_too() -> None:
    mixture = Mixture([ClipOrder([3, 2], None)], [1], None)
    assert batches_of_rank(mixture, 1, 2, 0, 2, 2, start=0) == [[2, 3], [6, 7]]


# --- mixtures


def mixture_of(sizes: list[int], shares: list[float], seed: int | None = 0) -> Mixture:
    return Mixture([ClipOrder([size], seed) for size in sizes], shares, seed)


shares_of_few = st.lists(st.floats(0.001, 100), min_size=1, max_size=5)


@given(shares_of_few, st.integers(0, 2**40), st.integers(0, 3), st.data())
@few
def test_each_data_set_has_its_share_of_any_beginning_and_goes_through_it_in_its_own_order(
    shares: list[float], seed: int, blocks: int, data: st.DataObject
) -> None:
    mixture = mixture_of([7] * len(shares), shares, seed)
    counts = mixture._counts(blocks * Mixture.BLOCK)
    assert counts.sum() == blocks * Mixture.BLOCK
    expected = blocks * Mixture.BLOCK * np.array(shares) / sum(shares)
    assert np.abs(counts - expected).max() < len(shares)
    first = blocks * Mixture.BLOCK
    located = [mixture.locate(position) for position in range(first, first + Mixture.BLOCK)]
    for source, order in enumerate(mixture.orders):
        mine = [place for found, *place in located if found == source]
        start = int(counts[source])
        assert mine == [list(order.locate(place)) for place in range(start, start + len(mine))]


@given(shares_of_few, st.integers(0, 10**12))
@few
def test_shares_are_exact_far_out_too(shares: list[float], position: int) -> None:
    mixture = mixture_of([7] * len(shares), shares)
    near, far = mixture._counts(position), mixture._counts(position + 1000)
    assert far.sum() - near.sum() == 1000
    assert (far >= near).all()  # no data set ever goes back


def test_every_clip_of_each_data_set_comes_once_in_its_own_epochs() -> None:
    mixture = mixture_of([5, 300], [1, 3])
    located = [mixture.locate(position) for position in range(4096)]
    for source, size in enumerate([5, 300]):
        mine = [(epoch, clip) for found, epoch, _, clip in located if found == source]
        complete = len(mine) // size
        assert complete > 5
        per_epoch = Counter(epoch for epoch, _ in mine)
        assert all(per_epoch[epoch] == size for epoch in range(complete))
        assert len(set(mine)) == len(mine)


def test_a_mixture_is_mixed_anew_in_each_block_and_with_each_seed() -> None:
    sources = [
        [mixture_of([9, 9], [1, 1], seed).locate(p)[0] for p in range(b * 1024, b * 1024 + 1024)]
        for seed in (0, 1)
        for b in (0, 1)
    ]
    assert all(sum(each) == 512 for each in sources)
    for i in range(4):
        assert 0.4 < np.mean(np.array(sources[i][1:]) == sources[i][:-1]) < 0.6
        for j in range(i):
            assert 0.4 < np.mean(np.array(sources[i]) == sources[j]) < 0.6


def test_a_mixture_of_one_is_its_order() -> None:
    order = ClipOrder([3, 4], 5)
    mixture = pickle.loads(pickle.dumps(Mixture([order], [0.3], 5)))
    assert [mixture.locate(p) for p in range(30)] == [(0, *order.locate(p)) for p in range(30)]


def test_the_mixture_never_changes_between_versions() -> None:
    assert [mixture_of([9, 9, 9], [1, 2, 3], 7).locate(p)[0] for p in range(12)] == [1, 2, 2, 2, 2, 0, 1, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("shares", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_shares_that_are_none_are_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="weights: expected 2 positive numbers"):
        mixture_of([1, 1], shares)


def test_temperature() -> None:
    assert np.allclose(shares_of([100, 1], 1), [100, 1])
    assert np.allclose(shares_of([100, 1], 2), [10, 1])
    assert np.allclose(shares_of([100, 1], 1e9), [1, 1])
    for temperature in (0.5, 0, float("nan")):
        with pytest.raises(ValueError, match="temperature: expected 1 or more"):
            shares_of([1, 2], temperature)
