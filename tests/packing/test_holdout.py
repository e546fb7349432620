"""Something is held out of every data set, also of a single recording, unless that is not wanted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.packing import holdout
from audio_diffusion.packing.form import Form
from audio_diffusion.packing.holdout import hold_out, parts_of
from audio_diffusion.packing.pack import pack
from audio_diffusion.packing.sources import Source, scan_folder
from audio_diffusion.packing.verify import verify

Encode = Callable[..., bytes]
ClipsOf = Callable[[Path], dict[str, tuple[str, bytes, dict[str, Any]]]]


@pytest.fixture
def recordings(tmp_path: Path, encode: Encode, noise: Callable[..., Any]) -> Callable[..., Path]:
    """recordings(seconds, ..) -> a folder of files of these lengths, 16-bit noise."""

    def made(*seconds: float, format: str = "WAV") -> Path:
        folder = tmp_path / f"in{len(seconds)}"
        folder.mkdir()
        for i, length in enumerate(seconds):
            samples = noise(round(16_000 * length), seed=i)
            (folder / f"{i}.{format.lower()}").write_bytes(encode(samples, 16_000, format))
        return folder

    return made


def samples_of(data: bytes, folder: Path) -> np.ndarray:
    import io

    import soundfile as sf

    return sf.read(io.BytesIO(data), dtype="int16")[0]


@pytest.mark.parametrize("form", [Form(), Form("flac"), Form("pcm16", segment_s=9.0)])
def test_of_one_recording_its_end_is_held_out(
    recordings: Callable[..., Path], tmp_path: Path, clips_of: ClipsOf, form: Form
) -> None:
    folder = recordings(2.0)
    whole = samples_of((folder / "0.wav").read_bytes(), folder)
    report = pack(scan_folder(folder, False), tmp_path / "out", form=form)
    clips = clips_of(tmp_path / "out")
    assert {name: (split, meta["start_s"]) for name, (split, _, meta) in clips.items()} == {
        "0.wav@0": ("train", 0.0), "0.wav@1": ("val", 1.8)
    }  # fmt: skip
    joined = np.concatenate([samples_of(data, folder) for _, data, _ in clips.values()])
    assert np.array_equal(joined, whole)  # nothing is lost, nothing is in both
    assert report.seconds == {"train": 1.8, "val": 0.2, "test": 0.0}
    assert report.notes[0].startswith("held out because there are few files: the last 10 % of '0.wav'")
    assert ("16-bit FLAC" in report.notes[0]) == (form.format == "keep")
    assert verify(str(tmp_path / "out")).problems == []


def test_with_segments_the_last_ones_are_held_out(
    recordings: Callable[..., Path], tmp_path: Path, clips_of: ClipsOf
) -> None:
    report = pack(
        scan_folder(recordings(2.0), False), tmp_path / "out", form=Form("flac", segment_s=0.1), val_fraction=0.25
    )
    clips = clips_of(tmp_path / "out")
    assert [clips[f"0.wav@{i}"][0] for i in range(20)] == ["train"] * 15 + ["val"] * 5
    assert report.seconds == {"train": 1.5, "val": 0.5, "test": 0.0}


def test_of_two_recordings_the_end_of_each_is_held_out_and_both_classes_stay(
    recordings: Callable[..., Path], tmp_path: Path, clips_of: ClipsOf
) -> None:
    folder = recordings(1.0, 2.0)
    for i in range(2):
        (folder / str(i)).mkdir()
        (folder / f"{i}.wav").rename(folder / str(i) / f"{i}.wav")
    report = pack(scan_folder(folder, True), tmp_path / "out", num_workers=2)
    clips = clips_of(tmp_path / "out")
    assert {(meta["label"], split) for split, _, meta in clips.values()} == {
        ("0", "train"), ("0", "val"), ("1", "train"), ("1", "val")
    }  # fmt: skip
    assert report.seconds == {"train": 2.7, "val": 0.3, "test": 0.0}
    assert report.manifest["stretches"] == ["0/0.wav", "1/1.wav"]
    assert verify(str(tmp_path / "out")).problems == []


def test_of_an_mp3_the_end_is_exact(recordings: Callable[..., Path], tmp_path: Path) -> None:
    folder = recordings(2.0, format="MP3")
    report = pack(scan_folder(folder, False), tmp_path / "out")
    assert sum(report.seconds.values()) == pytest.approx(2.0, abs=0.1)
    assert verify(str(tmp_path / "out")).problems == []


def test_a_recording_too_long_to_be_converted_at_once_is_cut_into_equal_pieces(
    recordings: Callable[..., Path], tmp_path: Path, clips_of: ClipsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio_diffusion.packing.prepare._MAX_PIECE", 16_000)
    monkeypatch.setattr(holdout, "_MAX_SAMPLES", 8_000)
    report = pack(scan_folder(recordings(2.0), False), tmp_path / "out", form=Form("flac"))
    splits = [split for split, _, _ in clips_of(tmp_path / "out").values()]
    assert (splits.count("train"), splits.count("val")) == (9, 1)
    assert report.refused == []
    assert report.seconds == {"train": 1.8, "val": 0.2, "test": 0.0}


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.1, 0.5, 0.7, 0.99, 1 - 1e-9])
@pytest.mark.parametrize("frames", [1, 2, 3, 1000, 16_000 * 3600 * 3])
@pytest.mark.parametrize("segment_s", [None, 0.01, 30.0])
def test_the_parts_of_a_recording_neither_overlap_nor_leave_anything_out(
    fraction: float, frames: int, segment_s: float | None
) -> None:
    parts = parts_of(AudioInfo(frames, 16_000, 2, "WAV/PCM_16"), Form("flac", segment_s=segment_s), fraction)
    train, val = parts["train"], parts["val"]
    assert train.cut == val.cut
    assert (train.first, train.stop, val.stop) == (0, val.first, val.cut.num_pieces)
    cut = train.cut
    assert (cut.num_pieces - 1) * cut.piece < frames - cut.left_out <= cut.num_pieces * cut.piece
    assert cut.piece * 2 <= 1 << 27
    assert train.stop >= 1
    if frames > 1:
        assert val.stop > val.first
    if frames > 1000 and fraction in (0.1, 0.5, 0.7):
        held = (frames - cut.left_out - val.first * cut.piece) / frames
        assert held == pytest.approx(fraction, abs=0.03)


def source(name: str, **fields: Any) -> Source:
    return Source(Path(name), name, fields)


def divided(sources: list[Source], seconds: list[float], fraction: float) -> tuple[list[str], set[str], str]:
    plan = [AudioInfo(round(16_000 * length), 16_000, 1, "WAV/PCM_16") for length in seconds]
    held = hold_out(sources, plan, fraction)
    return held.splits, set(held.stretches), held.note


def test_of_few_files_the_one_nearest_to_the_fraction_is_held_out() -> None:
    sources = [source(f"{i}.wav") for i in range(5)]
    splits, stretches, note = divided(sources, [1, 2, 30, 4, 50], 1e-9)
    assert (splits, stretches) == (["val", "train", "train", "train", "train"], set())
    assert note == "held out because there are few files: '0.wav'"
    splits, _, _ = divided(sources, [1, 2, 30, 4, 50], 1 - 1e-9)
    assert splits == ["train", "train", "train", "train", "val"]


def test_splits_that_are_given_stay() -> None:
    train, test, val, free = (source(f"{i}.wav", **({"split": i} if i else {})) for i in ("train", "test", "val", ""))
    lengths = [1.0, 1.0]
    assert divided([train, test], lengths, 0.1) == (
        ["train", "test"], set(), "no file is given the split val: training runs without validation"
    )  # fmt: skip
    assert divided([train, val], lengths, 0.1) == (["train", "val"], set(), "")
    assert divided([free, val], lengths, 1 - 1e-9) == (["train", "val"], set(), "")
    assert divided([train, free], lengths, 1e-9)[:2] == (["train", "train"], {".wav"})
    assert divided([test, val], lengths, 0.1) == (["test", "val"], set(), "")


@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_fraction_of_zero_packs_all_for_training(
    recordings: Callable[..., Path], tmp_path: Path, clips_of: ClipsOf, count: int
) -> None:
    folder = recordings(*[0.1] * count)
    report = pack(scan_folder(folder, False), tmp_path / "out", val_fraction=0)
    clips = clips_of(tmp_path / "out")
    assert {name: (split, data) for name, (split, data, _) in clips.items()} == {
        path.name: ("train", path.read_bytes()) for path in folder.iterdir()
    }
    assert report.clips == {"train": count, "val": 0, "test": 0}
    assert report.notes == ["nothing is held out (val_fraction is 0): training runs without validation"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["made"]["val_fraction"] == 0
    assert verify(str(tmp_path / "out")).problems == []


def test_where_all_that_is_held_out_is_silent_training_goes_without(
    tmp_path: Path, encode: Encode, noise: Callable[..., Any]
) -> None:
    (tmp_path / "in").mkdir()
    samples = noise(16_000)
    samples[12_000:] = 0
    (tmp_path / "in" / "0.wav").write_bytes(encode(samples, 16_000))
    report = pack(scan_folder(tmp_path / "in", False), tmp_path / "out", form=Form(silence_db=-60))
    assert report.clips == {"train": 1, "val": 0, "test": 0}
    assert any(reason.startswith("silent") for _, reason in report.refused)


def test_a_stopped_run_goes_on_with_the_same_division(
    recordings: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, form = scan_folder(recordings(1.0), False), Form("flac", segment_s=0.1)
    options: dict[str, Any] = {"form": form, "shard_bytes": 3_000}
    pack(sources, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr("audio_diffusion.packing.pack._report", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(sources, tmp_path / "out", **options)
    assert pack(sources, tmp_path / "out", **options).resumed > 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    assert sources == [replace(source) for source in sources]
