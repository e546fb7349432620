"""A position of the stream always gives the same crop, whoever asks; a bad clip is an empty slot with its reason."""

import io
import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from audio_diffusion.data.batch import AudioBatch, Crop
from audio_diffusion.data.faults import KINDS
from audio_diffusion.data.order import ClipOrder, Mixture, Positions
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.shared_memory import SharedSlots
from audio_diffusion.data.stream import BatchReader, ClipReader, Reading, read_in_order

CLASSES = ["clap", "hat", "kick", "snare", "tom"]
Read = Callable[[int], tuple[Crop, Tensor]]


def reader_of(
    shards: Shards, seed: int | None = 0, classes: Sequence[str] = CLASSES, crops_per_clip: int = 1, **options: object
) -> ClipReader:
    order = ClipOrder(shards.num_clips * crops_per_clip, seed, 16)
    mixture = Mixture([order], [1], seed)
    last: int | None = options.pop("last", None)  # type: ignore[assignment]
    reading = Reading(classes, **options)  # type: ignore[arg-type]
    return ClipReader([shards], mixture, 16_000, reading, seed, last, crops_per_clip)


@pytest.fixture(scope="module")
def make_reader(drum_shards: Path) -> Callable[..., ClipReader]:
    """ClipReader over the drum hits."""
    shards = Shards.open([str(drum_shards)])
    return lambda **options: reader_of(shards, **options)


def read(reader: ClipReader, position: int, num_samples: int = 1024, channels: int = 1) -> tuple[Crop, Tensor]:
    audio = torch.full((channels, num_samples), 7.0)
    return reader(position, audio), audio


def same(a: tuple[Crop, Tensor], b: tuple[Crop, Tensor]) -> bool:
    return a[0] == b[0] and torch.equal(a[1], b[1])


def test_crops_depend_on_the_position_alone(make_reader: Callable[..., ClipReader]) -> None:
    first, other = make_reader(), make_reader()
    n = first.mixture.num_clips
    positions = range(n - 10, n + 10)
    clips = [read(first, position) for position in positions]
    travelled = pickle.loads(pickle.dumps(first))
    for reader in (other, travelled):
        shuffled = np.random.permutation(len(positions)).tolist()
        assert all(same(read(reader, positions[i]), clips[i]) for i in shuffled)


def test_each_epoch_and_seed_crops_anew_and_a_short_crop_may_lie_anywhere(
    make_reader: Callable[..., ClipReader],
) -> None:
    reader = make_reader(seed=None)
    n = reader.mixture.num_clips
    whole = {clip.key: audio[0] for clip, audio in (read(reader, p, 8192) for p in range(n))}

    def places(seed: int, epoch: int) -> dict[str, int]:
        cropping, found = make_reader(seed=seed), {}
        for position in range(epoch * n, (epoch + 1) * n):
            clip, audio = read(cropping, position)
            assert clip.seconds_total == 0.512
            found[clip.key] = round(clip.seconds_start * 16_000)
            assert torch.equal(audio[0], whole[clip.key][found[clip.key] :][:1024])
        return found

    places_of = [places(0, 0), places(0, 1), places(1, 0)]
    for i in range(3):
        values = np.array(list(places_of[i].values())) / (8192 - 1024)
        assert len(values) == n
        assert values.min() < 0.2
        assert values.max() > 0.8
        assert 0.3 < values.mean() < 0.7
        for j in range(i):
            assert np.mean([places_of[i][key] == places_of[j][key] for key in whole]) < 0.1


def test_several_crops_of_a_clip_come_from_its_parts_in_turn(make_reader: Callable[..., ClipReader]) -> None:
    reader = make_reader(crops_per_clip=4)
    n = reader.mixture.num_clips
    assert n == 4 * make_reader().mixture.num_clips
    starts: dict[str, list[float]] = {}
    for position in range(n):
        clip, _ = read(reader, position)
        assert clip.num_valid == 1024
        starts.setdefault(clip.key, []).append(clip.seconds_start / (0.512 - 1024 / 16_000) * (1 - 1e-9))
    for of_clip in starts.values():
        assert [int(4 * start) for start in sorted(of_clip)] == [0, 1, 2, 3]
    again = {}
    for position in range(n, 2 * n):
        clip, _ = read(reader, position)
        again.setdefault(clip.key, []).append(clip.seconds_start / (0.512 - 1024 / 16_000))
    assert all(sorted(again[key]) != sorted(starts[key]) for key in starts)


def test_without_a_seed_a_crop_is_the_start_of_its_clip(make_reader: Callable[..., ClipReader]) -> None:
    reader = make_reader(seed=None)
    for position in range(5):
        (crop, audio), (whole, longer) = read(reader, position), read(reader, position, 8000)
        assert crop.key == whole.key
        assert crop.num_valid == 1024
        assert whole.num_valid == 8000
        assert (crop.seconds_start, crop.seconds_total) == (0, 0.512)
        assert torch.equal(audio, longer[:, :1024])


def test_labels_are_the_numbers_of_the_classes(make_reader: Callable[..., ClipReader]) -> None:
    reader = make_reader()
    clips = [read(reader, position)[0] for position in range(reader.mixture.num_clips)]
    assert all(clip.key.startswith(["clap", "hat", "kick", "snare", "tom"][clip.label]) for clip in clips)
    assert {clip.label for clip in clips} == {0, 1, 2, 3, 4}
    turned = make_reader(classes=["tom", "snare", "kick", "hat", "clap"])
    assert [read(turned, p)[0].label for p in range(10)] == [4 - clip.label for clip in clips[:10]]
    assert {read(make_reader(classes=[]), p)[0].label for p in range(10)} == {-1}


def test_a_label_that_is_no_class_is_skipped_and_named(make_reader: Callable[..., ClipReader]) -> None:
    reader, everything = make_reader(classes=["clap", "hat"]), make_reader()
    for position in range(10):
        (clip, audio), (expected, _) = read(reader, position), read(everything, position)
        label = expected.label
        assert (clip.num_valid == 0) == (label > 1) == (clip.skipped is not None) == (not audio.any())
        assert clip.label == (label if label <= 1 else -1)
        if clip.skipped:
            assert clip.skipped.key == clip.key == expected.key
            assert clip.skipped.kind == "label"
            assert clip.skipped.reason.endswith("is not one of clap, hat")


def test_positions_after_the_last_are_empty(make_reader: Callable[..., ClipReader]) -> None:
    reader = make_reader(last=3)
    assert [read(reader, p)[0].num_valid == 0 for p in (0, 2, 3, 4)] == [False, False, True, True]
    clip, audio = read(reader, 3)
    assert (clip.position, clip.source, clip.key, clip.label, clip.skipped) == (3, -1, "", -1, None)
    assert not audio.any()


BAD = {
    "text": (b"no audio", b'{"label": "kick"}', "format", "cannot be decoded"),
    "empty": (b"", b'{"label": "kick"}', "format", "cannot be decoded"),
    "no_json": (None, None, "label", "label None is not one of"),
    "no_label": (None, b"{}", "label", "label None is not one of"),
    "other_label": (None, b'{"label": "flute"}', "label", "label 'flute' is not one of kick, tom"),
    "list_label": (None, b'{"label": ["kick"]}', "label", r"label \['kick'\] is not one of"),
    "dict_label": (None, b'{"label": {"kick": 1}}', "label", "is not one of"),
    "number_label": (None, b'{"label": 0}', "label", "label 0 is not one of"),
    "json_list": (None, b'["kick"]', "metadata", "its json is a list"),
    "json_broken": (None, b'{"label": "ki', "metadata", "Unterminated string"),
    "json_binary": (None, b"\xff\xfe\x00", "metadata", "decode"),
    "json_deep": (None, b"[" * 100_000, "metadata", "nested too deeply"),
    "json_large": (None, b" " * 1_000_001, "metadata", "1000001 bytes, more than 1000000"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_clip_is_an_empty_slot_with_its_reason(
    tmp_path: Path,
    write_tar: Callable[..., Path],
    encode: Callable[..., bytes],
    noise: Callable[..., NDArray],
    fault: str,
) -> None:
    good, (audio, meta, kind, reason) = encode(noise(100), 16_000), BAD[fault]
    members = [
        ("good.wav", good),
        ("good.json", json.dumps({"label": "tom"}).encode()),
        (f"{fault}.wav", good if audio is None else audio),
    ]
    shard = write_tar(tmp_path / "s.tar", members + ([(f"{fault}.json", meta)] if meta is not None else []))
    reader = reader_of(Shards.open([str(shard)]), None, ["kick", "tom"])
    clip, out = read(reader, 1, 100)
    assert clip[:4] == (1, 0, fault, 0)
    assert clip.label == -1
    assert not out.any()
    assert clip.skipped is not None
    assert clip.skipped[:3] == (str(shard), fault, kind)
    assert kind in KINDS
    assert re.search(reason, clip.skipped.reason)
    clip, out = read(reader, 0, 100)
    assert clip.label == 1
    assert out.any()


def shard_of(tmp_path: Path, write_tar: Callable[..., Path], members: list[tuple[str, bytes]]) -> Shards:
    return Shards.open([str(write_tar(tmp_path / "s.tar", members))])


def npy(array: NDArray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_fields_of_the_json_and_members_come_with_the_clip_or_the_clip_is_skipped(
    tmp_path: Path, write_tar: Callable[..., Path], encode: Callable[..., bytes], noise: Callable[..., NDArray]
) -> None:
    good, embedding = encode(noise(100), 16_000), np.arange(6, dtype=np.float64).reshape(2, 3)
    members = [
        ("a.wav", good), ("a.json", b'{"caption": "a dog", "bpm": 120}'), ("a.text.npy", npy(embedding)),
        ("a.txt", b"dog"),
        ("b.wav", good), ("b.json", b'{"caption": "a cat", "bpm": 90.5}'), ("b.txt", b"cat"),
        ("c.wav", good), ("c.json", b'{"caption": ["a", "cow"], "bpm": 1}'), ("c.text.npy", npy(embedding)),
        ("c.txt", b"c"),
        ("d.wav", good), ("d.json", b'{"bpm": 1}'), ("d.text.npy", npy(embedding)), ("d.txt", b"d"),
    ]  # fmt: skip
    shards = shard_of(tmp_path, write_tar, members)
    reader = reader_of(shards, None, [], fields=("caption", "text.npy", "bpm", "txt"))
    clip, _ = read(reader, 0, 100)
    caption, array, bpm, text = clip.fields
    assert (caption, text) == ("a dog", "dog")
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert np.array_equal(array, embedding)
    assert bpm == 120
    for position, reason in ((1, "has no text.npy"), (2, "its caption is a list"), (3, "has no caption")):
        clip, out = read(reader, position, 100)
        assert clip.skipped is not None
        assert (clip.skipped.kind, clip.skipped.reason[: len(reason)]) == ("metadata", reason)
        assert not out.any()
    assert read(reader_of(shards, None, [], fields=("txt",)), 1, 100)[0].fields == ("cat",)


def test_rules_convert_or_skip(
    tmp_path: Path, write_tar: Callable[..., Path], encode: Callable[..., bytes], noise: Callable[..., NDArray]
) -> None:
    members = [
        ("same.wav", encode(noise(200), 16_000)),
        ("rate.wav", encode(noise(600), 48_000)),
        ("stereo.flac", encode(noise(200, 2), 16_000, "FLAC")),
        ("short.wav", encode(noise(50), 16_000)),
    ]
    shards = shard_of(tmp_path, write_tar, members)
    taken = [read(reader_of(shards, None, []), position, 100)[0] for position in range(4)]
    assert [clip.num_valid for clip in taken] == [100, 100, 100, 50]
    strict = reader_of(shards, None, [], convert=False, pad=False)
    kinds = [clip.skipped.kind if clip.skipped else None for clip in (read(strict, p, 100)[0] for p in range(4))]
    assert kinds == [None, "other_rate", "other_channels", "short"]


def test_a_shard_with_fewer_clips_than_promised_gives_empty_slots(
    tmp_path: Path, write_tar: Callable[..., Path], encode: Callable[..., bytes], noise: Callable[..., NDArray]
) -> None:
    shard = write_tar(tmp_path / "s.tar", [("a.wav", encode(noise(100), 16_000))])
    reader = reader_of(Shards([str(shard)], [3], [0]), None, [])
    assert read(reader, 0, 100)[0].skipped is None
    skipped = read(reader, 2, 100)[0].skipped
    assert skipped is not None
    assert skipped[:3] == (str(shard), "2", "missing")


def test_read_in_order_reads_the_start_of_each_clip_once(drum_shards: Path) -> None:
    shards = Shards.open([str(drum_shards)])
    clips = list(read_in_order(shards, 16_000, 2, 512, CLASSES))
    keys = [key for i in range(len(shards.paths)) for key in shards.index(i).keys]
    assert [clip.key for clip, _ in clips] == keys
    assert all(audio.shape == (2, 512) and clip.seconds_start == 0 for clip, audio in clips)


# --- batches and workers


def loader_of(reader: ClipReader, num_workers: int, method: str | None, num_slots: int = 7) -> DataLoader:
    slots = SharedSlots(max(num_workers, 1), num_slots, (3, 1, 1024)) if num_slots else None
    positions = Positions(reader.mixture, 3, num_batches=8, rank=1, world_size=2, start=5)
    pipeline = wds.DataPipeline(positions, wds.map(BatchReader(reader, (1, 1024), slots)))
    return DataLoader(pipeline, batch_size=None, num_workers=num_workers, multiprocessing_context=method)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_workers", "method", "num_slots"),
    [(0, None, 2), (0, None, 0), (1, "fork", 2), (2, "fork", 7), (2, "spawn", 7), (2, "forkserver", 7), (3, "fork", 0)],
)
def test_real_workers_however_started_read_the_same_stream(
    make_reader: Callable[..., ClipReader], num_workers: int, method: str | None, num_slots: int
) -> None:
    reader = make_reader()
    batches: list[AudioBatch] = list(loader_of(reader, num_workers, method, num_slots))
    globally = [reader.mixture.by_shard(np.arange(5 + 6 * k, 11 + 6 * k)).tolist() for k in range(8)]
    assert [list(batch.positions) for batch in batches] == [positions[3:] for positions in globally]
    for batch in batches:  # all kept at once: memory that is in use is not used again
        for i, position in enumerate(batch.positions):
            clip, audio = read(reader, position)
            assert torch.equal(batch.audio[i], audio)
            assert (batch.keys[i], int(batch.label[i])) == (clip.key, clip.label)  # type: ignore[index]
            assert batch.seconds_start[i] == np.float32(clip.seconds_start)
