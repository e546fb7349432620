"""Shards that other tools made: classes in .cls members, numbers as labels, several audio members of a clip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audio_diffusion.data.batch import Crop
from audio_diffusion.data.order import ClipOrder, Mixture
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.shards.summary import summarize
from audio_diffusion.data.stream import ClipReader, Reading
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.packing.pack import pack, scan_folder

WriteTar = Callable[..., Path]
AUDIO = CropFormat(sample_rate=16_000, channels=1, num_samples=16_384)


@pytest.fixture
def clip(encode: Callable[..., bytes], noise: Callable[..., Any]) -> Callable[..., bytes]:
    """clip(seed, format="WAV") -> 100 samples of noise."""
    return lambda seed=0, format="WAV": encode(noise(100, seed=seed), 16_000, format)


def clips_of(shard: Path, classes: list[str], **options: Any) -> list[Crop]:
    shards = Shards.open([str(shard)], **options)
    order = ClipOrder(shards.num_clips, None)
    reader = ClipReader([shards], Mixture([order], [1], None), 16_000, Reading(classes), None)
    return [reader(position, torch.empty(1, 100)) for position in range(order.num_clips)]


@pytest.mark.parametrize(
    ("name", "member", "classes", "expected"),
    [
        ("cls", b"1", ["kick", "snare"], 1),
        ("cls", b"snare\n", ["kick", "snare"], 1),
        ("cls", b"1", ["1", "2"], 0),
        ("cls", b"3", ["1", "2"], None),
        ("cls", b"2", ["kick", "snare"], None),
        ("cls", b"", ["kick", "snare"], None),
        ("cls", b"x" * 2000, ["kick", "snare"], None),
        ("json", b'{"label": 0}', ["0", "1"], 0),
        ("json", b'{"label": 1.0}', ["0", "1"], 1),
        ("json", b'{"label": true}', ["0", "1"], None),
        ("json", b'{"label": 0}', ["kick", "snare"], None),
        ("json", b'{"label": null}', ["kick", "snare"], -1),
        ("json", b"{}", ["kick", "snare"], None),
    ],
)
def test_a_class_is_a_name_or_a_number(
    tmp_path: Path, write_tar: WriteTar, clip: Any, name: str, member: bytes, classes: list[str], expected: int | None
) -> None:
    (found,) = clips_of(write_tar(tmp_path / "s.tar", [("a.wav", clip()), (f"a.{name}", member)]), classes)
    assert (found.label if found.skipped is None else None) == expected
    if expected is None:
        assert found.skipped is not None
        assert found.skipped.kind in ("label", "metadata")


def test_the_json_goes_before_the_cls(tmp_path: Path, write_tar: WriteTar, clip: Any) -> None:
    members = [("a.wav", clip()), ("a.cls", b"0"), ("a.json", b'{"label": "snare"}'),
               ("b.wav", clip()), ("b.cls", b"0"), ("b.json", b'{"bpm": 3}')]  # fmt: skip
    found = clips_of(write_tar(tmp_path / "s.tar", members), ["kick", "snare"])
    assert [one.label for one in found] == [1, 0]


def two_members(write_tar: WriteTar, clip: Any, path: Path) -> Path:
    return write_tar(path, [
        member for i in range(3)
        for member in ((f"{i}.flac", clip(i, "FLAC")), (f"{i}.wav", clip(9)), (f"{i}.json", b'{"label": "x"}'))
    ])  # fmt: skip


def test_clips_with_several_audio_members_need_a_choice(tmp_path: Path, write_tar: WriteTar, clip: Any) -> None:
    shard = two_members(write_tar, clip, tmp_path / "s.tar")
    with pytest.raises(ValueError, match=r"found several \(flac, wav\); select one .*: data.reading.audio_member=flac"):
        Shards.open([str(shard)])
    with pytest.raises(ValueError, match=r"audio_member: expected one that clips have \(flac, wav\), got mp3"):
        Shards.open([str(shard)], None, "mp3")
    for ending in ("flac", "wav"):
        for _ in range(2):  # made, then read again
            shards = Shards.open([str(shard)], None, ending)
            assert shards.refused == []
            assert [one.label for one in clips_of(shard, ["x"], audio_member=ending)] == [0, 0, 0]
        members = [bytes(shards.member(0, place))[:4] for place in shards.index(0).audio]  # type: ignore[arg-type]
        assert members == [{"flac": b"fLaC", "wav": b"RIFF"}[ending]] * 3


def test_stems_are_chosen_by_all_of_their_ending(tmp_path: Path, write_tar: WriteTar, clip: Any) -> None:
    members = [(f"{i}.{stem}.wav", clip(i)) for i in range(2) for stem in ("drums", "vocals")]
    members += [("0.json", b'{"label": "x"}'), ("1.json", b'{"label": "x"}')]
    shard = write_tar(tmp_path / "s.tar", members)
    found = clips_of(shard, ["x"], audio_member="vocals.wav")
    assert [(one.key, one.label) for one in found] == [("0", 0), ("1", 0)]
    with pytest.raises(ValueError, match=r"clips have \(drums.wav, vocals.wav\), got bass.wav"):
        Shards.open([str(shard)], None, "bass.wav")


def test_indexes_of_version_2_hold_for_packed_shards_alone(drum_shards: Path, tmp_path: Path) -> None:
    from audio_diffusion.data.shards import index as indexes

    shard = next(drum_shards.glob("train-*.tar"))
    columns = json.loads(Path(indexes.index_path(shard)).read_text())
    columns = {name: value for name, value in columns.items() if name != "choices"} | {"version": 2}
    assert indexes.loads(json.dumps(columns), str(shard)).keys == indexes.load_index(shard).keys
    columns["sha256"][0] = ""
    with pytest.raises(ValueError, match="is not of version 3"):
        indexes.loads(json.dumps(columns), str(shard))


# --- what is said at the start


def said(train: Path | str, classes: list[str], **options: Any) -> list[str]:
    return summarize({"train": str(train)}, None, RemoteStore(None), AUDIO, classes, **options)


def test_the_clips_and_what_becomes_of_them_are_said(drum_shards: Path) -> None:
    assert said(drum_shards, ["kick"]) == [
        "your clips are 16000 Hz mono, 0.512 s on average; training on 16000 Hz mono, 1.02 s"
    ]
    assert said(drum_shards, ["kick"], validates=False)[1:] == ["no validation, as val_every_steps is null"]


def test_silence_and_nothing_held_out_are_said(
    tmp_path: Path, encode: Callable[..., bytes], noise: Callable[..., Any]
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.wav").write_bytes(encode(0 * noise(44_100, 2), 44_100))
    pack(scan_folder(tmp_path / "in", False), tmp_path / "out", val_fraction=0)
    assert said(tmp_path / "out", []) == [
        "your clips are 44100 Hz stereo, 1 s on average; training on 16000 Hz mono, 1.02 s",
        "warning: all clips are digital silence, which the network learns to generate. Check the data",
        f"nothing is held out in {tmp_path / 'out'}: training runs without validation",
    ]


def test_silence_in_shards_of_other_programs_is_said(
    tmp_path: Path, write_tar: WriteTar, encode: Callable[..., bytes], clip: Any
) -> None:
    silent, late = encode(np.zeros(40_000), 16_000), encode(np.r_[np.zeros(30_000), 0.1 * np.ones(10_000)], 16_000)
    shard = write_tar(tmp_path / "s.tar", [(f"{i}.wav", silent) for i in range(50)])
    assert "warning: 25 of 25 checked clips are digital silence, which the network" in said(shard, [])[1]
    shard = write_tar(tmp_path / "t.tar", [("a.wav", late), ("b.wav", clip()), ("c.wav", b"no audio")])
    assert not any(line.startswith("warning") for line in said(shard, []))


def test_labels_that_vanish_as_another_data_set_has_none_are_said(
    tmp_path: Path, drum_shards: Path, write_tar: WriteTar, clip: Any
) -> None:
    shard = str(write_tar(tmp_path / "s.tar", [("a.wav", clip())]))
    train = {"drums": str(drum_shards), "music": shard}
    lines = summarize(train, None, RemoteStore(None), AUDIO, [])
    (line,) = [line for line in lines if line.startswith("the labels of")]
    assert line.startswith("the labels of drums are not used, because the manifest of music lists no classes")
    assert not any(
        line.startswith("the labels of") for line in summarize(train, None, RemoteStore(None), AUDIO, ["kick"])
    )
    both = {"drums": str(drum_shards), "more": str(drum_shards)}
    assert not any(line.startswith("the labels of") for line in summarize(both, None, RemoteStore(None), AUDIO, []))


def test_labels_that_are_not_used_are_named(tmp_path: Path, write_tar: WriteTar, clip: Any) -> None:
    members = [("a.wav", clip()), ("a.cls", b"kick"), ("b.wav", clip()), ("b.json", b'{"label": 7}'), ("c.wav", clip())]
    shard = write_tar(tmp_path / "s.tar", members)
    lines = said(shard, [])
    assert lines[0].startswith("the sample rate of your clips is unknown; training on")
    assert lines[1].startswith("labels of clips are not used, because no list of classes is given.")
    assert lines[1].endswith("To use them: 'classes=[7,kick]'")
    assert not any("clips have labels" in line for line in said(shard, ["7", "kick"]))
