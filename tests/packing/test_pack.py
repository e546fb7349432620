"""Every file comes out once, byte for byte, in the split its name decides; the same in, the same out."""

import csv
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_diffusion.data.shards.find import read_classes
from audio_diffusion.data.shards.index import load_index
from audio_diffusion.packing.pack import PackReport, pack, scan_folder

Encode = Callable[..., bytes]
ClipsOf = Callable[[Path], dict[str, tuple[str, bytes, dict[str, Any]]]]

COPY = "1 file is a copy of another: kept together in one split"


def pack_folder(folder: Path, output: Path, labels: bool = True, **options: Any) -> PackReport:
    return pack(scan_folder(folder, labels), output, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_file_comes_out_once_with_its_bytes_and_what_is_known_of_it(
    drum_folder: Path, drum_shards: Path, clips_of: ClipsOf
) -> None:
    clips = clips_of(drum_shards)
    assert clips.keys() == {path.relative_to(drum_folder).as_posix() for path in drum_folder.rglob("*.wav")}
    assert len(clips) == 40
    for name, (_, data, meta) in clips.items():
        assert data == (drum_folder / name).read_bytes()
        label = name.split("/")[0]
        assert -60 < meta.pop("level_db") < 0
        sha256 = hashlib.sha256(data).hexdigest()
        known = {"frames": 8192, "sample_rate": 16_000, "channels": 1, "sha256": sha256}
        assert meta == {"label": label, "source": name, **known}


def test_the_manifest_tells_what_the_shards_hold(drum_shards: Path, clips_of: ClipsOf) -> None:
    manifest, clips = json.loads((drum_shards / "manifest.json").read_text()), clips_of(drum_shards)
    splits = [split for split, _, _ in clips.values()]
    assert manifest["version"] == 1
    assert manifest["clips"] == {split: splits.count(split) for split in ("train", "val", "test")}
    assert manifest["seconds"] == {k: pytest.approx(n * 0.512, abs=1e-3) for k, n in manifest["clips"].items()}
    assert manifest["classes"] == ["clap", "hat", "kick", "snare", "tom"]
    assert manifest["labels"] == {label: 8 for label in manifest["classes"]}
    assert manifest["unlabelled"] == 0
    assert manifest["files"] == {"found": 40, "refused": 0}
    assert manifest["hours"] == pytest.approx(40 * 0.512 / 3600, abs=1e-6)
    assert sum(count for _, count in manifest["levels_dbfs"]["histogram"]) == 40
    assert manifest["durations_s"] == {"shortest": 0.512, "mean": 0.512, "longest": 0.512, "histogram": [[0.50119, 40]]}
    assert {shard["name"] for shard in manifest["shards"]} == {path.name for path in drum_shards.glob("*.tar")}
    for shard in manifest["shards"]:
        path = drum_shards / shard["name"]
        assert shard["bytes"] == path.stat().st_size
        index = load_index(path)
        assert shard["clips"] == len(index.keys)
        assert set(index.frames) == {8192}
        assert set(index.sample_rate) == {16_000}
        assert all(len(sha256) == 64 for sha256 in index.sha256)
        assert shard["split"] == path.name.split("-")[0]
        assert shard["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not list(drum_shards.glob(".*"))  # no temporary files are left


def test_shards_are_closed_at_their_size_and_hold_a_mixture(drum_folder: Path, tmp_path: Path) -> None:
    report = pack_folder(drum_folder, tmp_path / "out", shard_bytes=100_000, val_fraction=0.2)
    train = [shard for shard in report.shards if shard["split"] == "train"]
    clip = 512 * (1 + 33 + 1 + 1)  # header, audio, header, json
    assert 5 * clip < 100_000 < 6 * clip
    assert [shard["clips"] for shard in train] == [6] * (report.clips["train"] // 6) + [report.clips["train"] % 6]
    names = [shard["name"] for shard in train]
    assert names == [f"train-{i:06d}.tar" for i in range(len(names))]
    for name in names[:3]:
        with tarfile.open(tmp_path / "out" / name) as tar:
            labels = {member.name.split("_")[0] for member in tar}
        assert len(labels) >= 3
    one = pack_folder(drum_folder, tmp_path / "one")
    assert [(shard["name"], shard["clips"]) for shard in one.shards] == [
        ("train-000000.tar", one.clips["train"]), ("val-000000.tar", one.clips["val"])
    ]  # fmt: skip


def test_the_same_files_give_the_same_bytes_whatever_else_differs(folder: Path, tmp_path: Path) -> None:
    for i, options in enumerate(({}, {}, {"num_workers": 3})):
        for path in folder.rglob("*.wav"):
            os.utime(path, (i, i))
        pack_folder(folder, tmp_path / f"out{i}", val_fraction=0.3, shard_bytes=1000, **options)
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    sources = scan_folder(moved, True)
    pack(sources[::-1], tmp_path / "out3", val_fraction=0.3, shard_bytes=1000)
    first = files_of(tmp_path / "out0")
    assert len(first) > 10
    assert all(files_of(tmp_path / f"out{i}") == first for i in (1, 2, 3))


def test_adding_files_moves_no_other_between_the_splits(
    folder: Path, tmp_path: Path, encode: Encode, clips_of: ClipsOf
) -> None:
    pack_folder(folder, tmp_path / "before", val_fraction=0.3)
    for i in range(20):
        (folder / "a" / f"new_{i}.wav").write_bytes(encode([0.1] * 50, 16_000))
    pack_folder(folder, tmp_path / "after", val_fraction=0.3)
    before, after = clips_of(tmp_path / "before"), clips_of(tmp_path / "after")
    assert len(after) == len(before) + 20
    assert {name: after[name][0] for name in before} == {name: clip[0] for name, clip in before.items()}


def test_equal_names_in_different_folders_stay_two_clips(
    folder: Path, tmp_path: Path, encode: Encode, clips_of: ClipsOf
) -> None:
    for label, value in (("a", 0.1), ("b", 0.2)):
        (folder / label / "same.wav").write_bytes(encode([value] * 10, 16_000))
    pack_folder(folder, tmp_path / "out", val_fraction=0.3)
    clips = clips_of(tmp_path / "out")
    assert len(clips) == 14
    for label in ("a", "b"):
        assert clips[f"{label}/same.wav"][1] == (folder / label / "same.wav").read_bytes()
    keys = [key for shard in (tmp_path / "out").glob("*.tar") for key in load_index(shard).keys]
    assert len(set(keys)) == len(keys) == 14


NAMES = [
    "01. Intro (live) v2.5.wav",
    "太鼓.wav",
    "é" * 80 + ".wav",
    "a b\tc'\"$.WAV",
    "x_y-z.wav",
    os.fsdecode(b"caf\xe9.wav"),
]


def test_any_file_name_makes_a_plain_key(folder: Path, tmp_path: Path, clips_of: ClipsOf) -> None:
    data = (folder / "a" / "1.wav").read_bytes()
    for name in NAMES:
        (folder / "a" / name).write_bytes(data)
    pack_folder(folder, tmp_path / "out", val_fraction=0.3)
    clips = clips_of(tmp_path / "out")
    assert {f"a/{name}" for name in NAMES} < clips.keys()
    for shard in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(shard) as tar:
            assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,60}_[0-9a-f]{12}\.(wav|json)", member.name) for member in tar)
        assert load_index(shard).refused == []


def test_data_without_labels_has_no_classes(folder: Path, tmp_path: Path, clips_of: ClipsOf) -> None:
    report = pack_folder(folder, tmp_path / "none", labels=False, val_fraction=0.3)
    assert report.classes == read_classes([str(tmp_path / "none")]) == []
    assert all("label" not in meta for _, _, meta in clips_of(tmp_path / "none").values())
    assert report.notes == []


def test_a_clip_without_a_label_is_marked_and_the_classes_of_the_others_stay(
    folder: Path, tmp_path: Path, clips_of: ClipsOf
) -> None:
    (folder / "bare.wav").write_bytes((folder / "a" / "1.wav").read_bytes())
    report = pack_folder(folder, tmp_path / "some", val_fraction=0.3)
    assert report.classes == read_classes([str(tmp_path / "some")]) == ["a", "b"]
    labels = {name: meta["label"] for name, (_, _, meta) in clips_of(tmp_path / "some").items()}
    assert labels.pop("bare.wav") is None
    assert set(labels.values()) == {"a", "b"}
    assert report.notes == ["1 file of 13 without a label: training treats it as 'not given'", COPY]
    for i in range(13):
        (folder / f"bare_{i}.wav").write_bytes((folder / "a" / "1.wav").read_bytes())
    report = pack_folder(folder, tmp_path / "few", val_fraction=0.3)
    assert report.classes == []
    assert report.notes[0].startswith("labels: 12 of 26 files have one, fewer than half")
    assert "label" not in clips_of(tmp_path / "few")["bare.wav"][2]


def test_a_class_may_be_called_none(folder: Path, tmp_path: Path) -> None:
    (folder / "a").rename(folder / "None")
    assert pack_folder(folder, tmp_path / "out", val_fraction=0.3).classes == ["None", "b"]


def test_what_cannot_be_used_is_refused_by_name_and_the_rest_packed(
    folder: Path, tmp_path: Path, encode: Encode, noise: Callable[..., Any], clips_of: ClipsOf
) -> None:
    (folder / "a" / "text, with comma.flac").write_text("no audio")
    (folder / "a" / "empty.wav").touch()
    flac = encode(noise(20_000), 16_000, "FLAC")
    (folder / "b" / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (folder / "b" / os.fsdecode(b"caf\xe9.wav")).touch()
    told: list[tuple] = []
    report = pack_folder(folder, tmp_path / "out", val_fraction=0.3, progress=lambda *counts: told.append(counts))
    reasons = dict(report.refused)
    assert reasons.keys() == {"a/text, with comma.flac", "a/empty.wav", "b/cut.flac", os.fsdecode(b"b/caf\xe9.wav")}
    assert "cannot be decoded" in reasons["a/text, with comma.flac"]
    assert "broken after" in reasons["b/cut.flac"]
    with open(tmp_path / "out" / "refused.csv", newline="", encoding="utf-8", errors="surrogateescape") as f:
        header, *rows = csv.reader(f)
    assert header == ["file", "reason"]
    assert [tuple(row) for row in rows] == report.refused
    assert len(clips_of(tmp_path / "out")) == 12 == sum(report.clips.values())
    assert [counts[:3] for counts in told] == [("looking", i, 16) for i in range(1, 17)] + [
        ("packing", i, 13) for i in range(1, 14)
    ]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["files"] == {"found": 16, "refused": 4}


def test_an_output_that_holds_shards_is_refused_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    pack_folder(folder, tmp_path / "out", val_fraction=0.3)
    before = files_of(tmp_path / "out")
    with pytest.raises(ValueError, match=r"output: '.*out' already holds shards; remove them or choose another"):
        pack_folder(folder, tmp_path / "out", val_fraction=0.6)
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize("fraction", [1, -0.1, 10])
def test_fractions_that_hold_out_all_or_make_no_sense_are_refused(
    folder: Path, tmp_path: Path, fraction: float
) -> None:
    with pytest.raises(ValueError, match=f"val_fraction: expected at least 0, .* less than 1, got {fraction}"):
        pack_folder(folder, tmp_path / "out", val_fraction=fraction)


def test_shards_of_no_size_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_bytes: expected at least 1, got 0"):
        pack_folder(folder, tmp_path / "out", shard_bytes=0)


def test_what_is_refused_is_named_also_when_all_is(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.wav"):
        path.write_text("no audio")
    for _ in range(2):  # and the second run is not stopped by what the first has left
        with pytest.raises(ValueError, match=r"of 12 files \(12 refused, such as .*refused.csv\) none is left"):
            pack_folder(folder, tmp_path / "out")
    with open(tmp_path / "out" / "refused.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 12
    assert all("cannot be decoded" in row["reason"] for row in rows)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["refused.csv"]


def test_a_manifest_without_files_to_train_on_is_refused(folder: Path, tmp_path: Path) -> None:
    sources = [replace(source, fields={"split": "test"}) for source in scan_folder(folder, False)]
    with pytest.raises(ValueError, match=r"of 12 files \(0 refused\) none is left for training; provide more files"):
        pack(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_digital_silence_and_formats_are_counted(folder: Path, tmp_path: Path, encode: Encode) -> None:
    for name in ("a/1.wav", "b/2.wav"):
        (folder / name).write_bytes(encode(np.zeros((100, 2)), 44_100))
    report = pack_folder(folder, tmp_path / "out", val_fraction=0.3)
    assert report.manifest["digital_silence"] == 2
    assert report.notes == ["2 of 12 clips are digital silence", COPY]
    assert report.manifest["formats"] == [
        {"sample_rate": 16_000, "channels": 1, "clips": 10}, {"sample_rate": 44_100, "channels": 2, "clips": 2}
    ]  # fmt: skip
