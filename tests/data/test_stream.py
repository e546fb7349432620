"""The stream is a pure function of (seed, position): not of ranks, workers, restarts, or who has asked before."""

import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from audio_diffusion.data.batch import Clip
from audio_diffusion.data.index import load_index
from audio_diffusion.data.shards import expand
from audio_diffusion.data.stream import ClipOrder, ClipReader, Positions

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


def as_worker(positions: Positions, worker: int, num_workers: int) -> Iterator[int]:
    """The positions that a DataLoader's worker reads; 0 workers: the process itself."""
    info = SimpleNamespace(id=worker, num_workers=num_workers) if num_workers else None
    with mock.patch("audio_diffusion.data.stream.get_worker_info", return_value=info):
        return iter(list(positions))


def batches_of_rank(
    rank: int, world_size: int, num_workers: int, batch_size: int, num_batches: int, start: int
) -> list[list[int]]:
    """What the DataLoader makes of the workers' streams: a batch of each in turn."""
    positions = Positions(batch_size, num_batches, rank, world_size, start)
    streams = [as_worker(positions, worker, num_workers) for worker in range(max(num_workers, 1))]
    made = [[next(streams[k % len(streams)]) for _ in range(batch_size)] for k in range(num_batches)]
    assert all(next(stream, None) is None for stream in streams)
    return made


def global_batches(
    world_size: int, num_workers: int, global_batch: int, num_batches: int, start: int = 0
) -> list[list[int]]:
    ranks = [
        batches_of_rank(rank, world_size, num_workers, global_batch // world_size, num_batches, start)
        for rank in range(world_size)
    ]
    return [[position for batch in parts for position in batch] for parts in zip(*ranks, strict=True)]


@given(st.integers(1, 8), st.integers(0, 4), st.integers(1, 3), st.integers(0, 9), st.integers(0, 1000))
@few
def test_a_global_batch_is_the_same_on_any_number_of_ranks_and_workers(
    world_size: int, num_workers: int, per_rank: int, num_batches: int, start: int
) -> None:
    batches = global_batches(world_size, num_workers, per_rank * world_size, num_batches, start)
    flat = [position for batch in batches for position in batch]
    assert flat == list(range(start, start + per_rank * world_size * num_batches))
    assert batches == global_batches(1, 0, per_rank * world_size, num_batches, start)


@given(st.integers(1, 8), st.integers(0, 4), st.integers(1, 3), st.integers(0, 9), st.integers(0, 9))
@few
def test_accumulated_batches_are_parts_of_the_same_global_batch(
    world_size: int, num_workers: int, accumulate: int, num_steps: int, start: int
) -> None:
    size = 2 * world_size * accumulate
    micro = global_batches(world_size, num_workers, size // accumulate, num_steps * accumulate, start)
    flat = [position for batch in micro for position in batch]
    steps = [flat[k * size : (k + 1) * size] for k in range(num_steps)]
    assert steps == global_batches(1, 0, size, num_steps, start)


@given(st.integers(1, 8), st.integers(0, 4), st.integers(1, 8), st.integers(0, 4), st.integers(0, 6))
@few
def test_going_on_from_any_step_on_other_machines_gives_the_same_batches(
    world_before: int, workers_before: int, world_after: int, workers_after: int, stop: int
) -> None:
    size = 840  # of any number of ranks a multiple
    before = global_batches(world_before, workers_before, size, stop)
    after = global_batches(world_after, workers_after, size, 6 - stop, start=stop * size)
    assert before + after == global_batches(1, 0, size, 6)


# --- the clips


@pytest.fixture(scope="module")
def make_reader(drum_shards: Path) -> Callable[..., ClipReader]:
    """ClipReader over the drum hits."""
    indexes = [load_index(path) for path in expand(str(drum_shards))]
    classes = ["clap", "hat", "kick", "snare", "tom"]

    def made(seed: int | None = 0, num_samples: int = 1024, classes: Sequence[str] = classes, **options) -> ClipReader:  # type: ignore[no-untyped-def]
        order = ClipOrder([len(index.keys) for index in indexes], seed, 16)
        return ClipReader(indexes, order, 16_000, 1, num_samples, classes, seed, **options)

    return made


def same(a: Clip, b: Clip) -> bool:
    if a.audio is None or b.audio is None:
        return a == b
    return a[:2] + a[3:] == b[:2] + b[3:] and torch.equal(a.audio, b.audio)


def test_crops_depend_on_the_position_alone(make_reader: Callable[..., ClipReader]) -> None:
    first, other = make_reader(), make_reader()
    n = first.order.num_clips
    positions = range(n - 10, n + 10)
    clips = [first(position) for position in positions]
    travelled = pickle.loads(pickle.dumps(first))
    for reader in (other, travelled):
        shuffled = np.random.permutation(len(positions)).tolist()
        assert all(same(reader(positions[i]), clips[i]) for i in shuffled)


def test_each_epoch_and_seed_crops_anew_and_a_short_crop_may_lie_anywhere(
    make_reader: Callable[..., ClipReader],
) -> None:
    reader = make_reader(num_samples=8192)
    whole = {clip.key: clip.audio for clip in map(reader, range(reader.order.num_clips))}

    def places(seed: int, epoch: int) -> dict[str, int]:
        cropping = make_reader(seed=seed)
        first = epoch * cropping.order.num_clips
        found = {}
        for clip in map(cropping, range(first, first + cropping.order.num_clips)):
            assert clip.audio is not None
            windows = whole[clip.key][0].unfold(0, 1024, 1)
            alike = (windows[:, :8] == clip.audio[0, :8]).all(1).nonzero()[:, 0].tolist()
            [found[clip.key]] = [start for start in alike if torch.equal(windows[start], clip.audio[0])]
        return found

    places_of = [places(0, 0), places(0, 1), places(1, 0)]
    for i in range(3):
        values = np.array(list(places_of[i].values())) / (8192 - 1024)
        assert len(values) == reader.order.num_clips
        assert values.min() < 0.2
        assert values.max() > 0.8
        assert 0.3 < values.mean() < 0.7
        for j in range(i):
            assert np.mean([places_of[i][key] == places_of[j][key] for key in whole]) < 0.1


def test_without_a_seed_a_crop_is_the_start_of_its_clip(make_reader: Callable[..., ClipReader]) -> None:
    crops, wholes = make_reader(seed=None), make_reader(seed=None, num_samples=8192)
    for position in range(5):
        crop, whole = crops(position), wholes(position)
        assert crop.key == whole.key
        assert crop.num_valid == 1024
        assert whole.num_valid == 8192
        assert torch.equal(crop.audio, whole.audio[:, :1024])  # type: ignore[index, arg-type]


def test_labels_are_the_numbers_of_the_classes(make_reader: Callable[..., ClipReader]) -> None:
    reader = make_reader()
    clips = [reader(position) for position in range(reader.order.num_clips)]
    assert all(clip.key.startswith(["clap", "hat", "kick", "snare", "tom"][clip.label]) for clip in clips)
    assert {clip.label for clip in clips} == {0, 1, 2, 3, 4}
    turned = make_reader(classes=["tom", "snare", "kick", "hat", "clap"])
    assert [turned(p).label for p in range(10)] == [4 - clip.label for clip in clips[:10]]
    assert {make_reader(classes=[])(p).label for p in range(10)} == {-1}


def test_a_label_that_is_no_class_is_skipped_and_named(make_reader: Callable[..., ClipReader]) -> None:
    reader, everything = make_reader(classes=["clap", "hat"]), make_reader()
    for position in range(10):
        clip, label = reader(position), everything(position).label
        assert (clip.audio is None) == (label > 1) == (clip.skipped is not None)
        assert clip.label == (label if label <= 1 else -1)
        if clip.skipped:
            assert clip.skipped.key == clip.key == everything(position).key
            assert clip.skipped.reason.endswith("is not one of clap, hat")


def test_positions_after_the_last_are_empty(make_reader: Callable[..., ClipReader]) -> None:
    reader = make_reader(last=3)
    assert [reader(p).audio is None for p in (0, 2, 3, 4)] == [False, False, True, True]
    assert reader(3) == Clip(3, "", None, 0, -1)


BAD = {
    "text": (b"no audio", b'{"label": "kick"}', "cannot be decoded"),
    "no_json": (None, None, "label None is not one of"),
    "no_label": (None, b"{}", "label None is not one of"),
    "other_label": (None, b'{"label": "flute"}', "label 'flute' is not one of kick, tom"),
    "list_label": (None, b'{"label": ["kick"]}', r"label \['kick'\] is not one of"),
    "dict_label": (None, b'{"label": {"kick": 1}}', "is not one of"),
    "number_label": (None, b'{"label": 0}', "label 0 is not one of"),
    "json_list": (None, b'["kick"]', "its json is a list"),
    "json_broken": (None, b'{"label": "ki', "Unterminated string"),
    "json_binary": (None, b"\xff\xfe\x00", "decode"),
    "json_deep": (None, b"[" * 100_000, "recursion"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_clip_is_an_empty_slot_with_its_reason(
    tmp_path: Path,
    write_tar: Callable[..., Path],
    encode: Callable[..., bytes],
    noise: Callable[..., NDArray],
    fault: str,
) -> None:
    good, (audio, meta, reason) = encode(noise(100), 16_000), BAD[fault]
    members = [
        ("good.wav", good),
        ("good.json", json.dumps({"label": "tom"}).encode()),
        (f"{fault}.wav", audio or good),
    ]
    index = load_index(write_tar(tmp_path / "s.tar", members + ([(f"{fault}.json", meta)] if meta is not None else [])))
    reader = ClipReader([index], ClipOrder([2], None), 16_000, 1, 100, ["kick", "tom"], None)
    clip = reader(1)
    assert clip[:5] == (1, fault, None, 0, -1)
    assert clip.skipped is not None
    assert clip.skipped[:2] == (str(tmp_path / "s.tar"), fault)
    assert re.search(reason, clip.skipped.reason)
    assert reader(0).audio is not None
    assert reader(0).label == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_real_workers_however_started_read_the_same_stream(make_reader: Callable[..., ClipReader], method: str) -> None:
    reader = make_reader()
    positions = Positions(3, num_batches=4, rank=1, world_size=2, start=5)
    pipeline = wds.DataPipeline(positions, wds.map(reader), wds.batched(3, collation_fn=list, partial=False))
    loader = DataLoader(pipeline, batch_size=None, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    assert [[clip.position for clip in batch] for batch in batches] == [
        [8, 9, 10],
        [14, 15, 16],
        [20, 21, 22],
        [26, 27, 28],
    ]
    assert all(same(clip, reader(clip.position)) for batch in batches for clip in batch)
