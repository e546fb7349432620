"""Cutting, silence, loudness and 16 bits, as they come out of the shards."""

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile as sf

from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.packing import form as form_module
from audio_diffusion.packing import prepare
from audio_diffusion.packing.form import Form, cut_of, tasks
from audio_diffusion.packing.pack import PackReport, pack
from audio_diffusion.packing.sources import Source, scan_folder

Encode = Callable[..., bytes]
Noise = Callable[..., Any]
ClipsOf = Callable[[Path], dict[str, tuple[str, bytes, dict[str, Any]]]]


@pytest.fixture
def packed(tmp_path: Path, encode: Encode, clips_of: ClipsOf) -> Callable[..., tuple[PackReport, dict, dict]]:
    """packed({name: file's bytes}, **form) -> (report, {clip: samples [T, C]}, {clip: json}); v.wav is held out."""

    def made(files: dict[str, bytes], **form: Any) -> tuple[PackReport, dict, dict]:
        number = len(list(tmp_path.iterdir()))
        folder, output = tmp_path / f"in{number}", tmp_path / f"out{number}"
        folder.mkdir()
        for name, data in {**files, "v.wav": encode([0.5] * 100, 16_000)}.items():
            (folder / name).write_bytes(data)
        sources = [
            Source(source.path, source.name, {"split": "val" if source.name == "v.wav" else "train"})
            for source in scan_folder(folder, False)
        ]
        report = pack(sources, output, form=Form(**form))
        clips = {name: clip for name, clip in clips_of(output).items() if not name.startswith("v.wav")}
        for _, data, meta in clips.values():
            assert hashlib.sha256(data).hexdigest() == meta["sha256"]
        audio = {name: sf.read(io.BytesIO(data), always_2d=True)[0] for name, (_, data, _) in clips.items()}
        return report, audio, {name: meta for name, (_, _, meta) in clips.items()}

    return made


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"format": "wav"}, "format: expected keep, flac, pcm16, got 'wav'"),
        ({"format": "flac", "sample_rate": 10}, "sample_rate: expected 1000 to 768000, got 10"),
        ({"format": "flac", "channels": 0}, "channels: expected 1 to 64, got 0"),
        ({"format": "flac", "segment_s": -1}, "segment_s: expected 0.001 to inf, got -1"),
        ({"silence_db": 60}, "silence_db: expected -140 to 0, got 60"),
        ({"lufs": -23}, "lufs: format=keep leaves the audio as it is; choose format=flac or pcm16"),
        ({"sample_rate": 16_000}, "sample_rate: format=keep leaves the audio as it is"),
    ],
)
def test_impossible_forms_are_refused(form: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Form(**form)


@pytest.mark.parametrize(
    ("frames", "pieces", "left_out"),
    [(1, 1, 0), (1000, 1, 0), (1499, 1, 499), (1500, 2, 0), (2000, 2, 0), (2499, 2, 499), (36_000_000, 36_000, 0)],
)
def test_a_rest_of_less_than_half_a_piece_is_left_out(frames: int, pieces: int, left_out: int) -> None:
    info, form = AudioInfo(frames, 1000, 2, "WAV/PCM_16"), Form("flac", segment_s=1)
    cut = cut_of(info, form)
    assert (cut.num_pieces, cut.left_out) == (pieces, left_out)
    parts = list(tasks(Source(Path("x.wav"), "x.wav"), info, form))
    assert [part.first for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == pieces
    assert sum(part.is_last for part in parts) == 1
    assert sum(part.seconds for part in parts) == pytest.approx(frames / 1000)
    assert all((part.stop - part.first) * 2 * 2 * 1000 <= 16_000_000 for part in parts)


@pytest.mark.parametrize("format", ["flac", "pcm16"])
def test_pieces_laid_end_to_end_are_the_file(packed: Any, encode: Encode, noise: Noise, format: str) -> None:
    samples = np.round(noise(10_300, 2) * 32768) / 32768
    report, audio, meta = packed({"x.flac": encode(samples, 16_000, "FLAC")}, format=format, segment_s=0.1)
    names = [f"x.flac@{number}" for number in range(6)]
    assert list(meta) == names
    np.testing.assert_array_equal(np.concatenate([audio[name] for name in names]), samples[:9600])
    assert [meta[name]["start_s"] for name in names] == pytest.approx([0.1 * number for number in range(6)])
    assert {meta[name]["frames"] for name in names} == {1600}
    assert report.manifest["rests"] == {"pieces": 1, "seconds": round(700 / 16_000, 3)}


def test_a_longer_rest_is_a_piece_and_keys_are_plain(packed: Any, encode: Encode, noise: Noise, tmp_path: Path) -> None:
    report, audio, _ = packed({"a.b.wav": encode(noise(2500), 16_000)}, format="flac", segment_s=0.1)
    assert [len(audio[f"a.b.wav@{number}"]) for number in (0, 1)] == [1600, 900]
    index = json.loads(next(tmp_path.glob("out*/train-000000.index.json")).read_text())
    digest = hashlib.sha256(b"a.b.wav").hexdigest()[:12]
    assert index["keys"] == [f"a_b_{digest}_000000", f"a_b_{digest}_000001"]
    assert index["frames"] == [1600, 900]
    assert report.manifest["rests"] == {"pieces": 0, "seconds": 0}


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_resampled_pieces_are_those_of_the_whole_file_whatever_the_work_is_cut_into(
    packed: Any, encode: Encode, noise: Noise, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"x.{format.lower()}": encode(0.5 * noise(30_000, 2), 44_100, format)}
    form = {"format": "pcm16", "sample_rate": 16_000, "channels": 1}
    _, whole, _ = packed(files, **form)
    (expected,) = whole.values()
    made = []
    for bytes_at_once in (10**9, 7_000, 1):
        monkeypatch.setattr(form_module, "IN_MEMORY", bytes_at_once)
        _, pieces, meta = packed(files, **form, segment_s=0.1)
        made.append([one["sha256"] for one in meta.values()])
        joined = np.concatenate([pieces[name] for name in sorted(pieces, key=lambda name: int(name.split("@")[1]))])
        assert len(joined) == len(expected)
        assert np.abs(joined - expected).max() < 1.5 / 32768  # a step where float32 rounds to the other side
    assert made[0] == made[1] == made[2]


def test_channels_are_mapped_and_those_without_a_rule_refused(packed: Any, encode: Encode, noise: Noise) -> None:
    files = {"two.wav": encode(noise(500, 2), 16_000), "three.wav": encode(noise(500, 3), 16_000)}
    report, audio, meta = packed(files, format="flac", channels=2)
    assert audio["two.wav"].shape == (500, 2)
    assert meta["two.wav"]["channels"] == 2
    assert report.refused == [("three.wav", "has 3 channels, which cannot be converted to 2")]


def test_silent_pieces_are_left_out_counted_and_named(packed: Any, encode: Encode) -> None:
    tone = 0.1 * np.sin(np.arange(16_000) * 0.3)
    quiet = 1e-4 * np.sin(np.arange(16_000) * 0.3)  # -83 dBFS
    files = {"x.wav": encode(np.concatenate([tone, quiet, tone, quiet, quiet, tone]), 16_000, subtype="PCM_24")}
    report, audio, _ = packed(files, format="flac", segment_s=1, silence_db=-80)
    assert set(audio) == {"x.wav@0", "x.wav@2", "x.wav@5"}
    assert report.manifest["silent"] == {"pieces": 3, "seconds": 3.0}
    assert report.refused == [("x.wav", "silent (below -80 dBFS rms): 3 pieces, 3.000 s, at 1, 3, 4 s")]
    assert report.manifest["files"]["refused"] == 0
    kept, audio, _ = packed(files, format="flac", segment_s=1, silence_db=-90)
    assert len(audio) == 6
    assert kept.manifest["silent"]["pieces"] == 0
    levels = dict(kept.manifest["levels_dbfs"]["histogram"])
    assert (levels[-84], levels[-24]) == (3, 3)  # 20 log10(0.1 / sqrt 2) = -23.01


def test_silent_files_are_left_out_where_bytes_are_kept(packed: Any, encode: Encode, noise: Noise) -> None:
    files = {"zero.wav": encode(np.zeros(100), 16_000), "x.wav": encode(noise(100), 16_000)}
    report, audio, _ = packed(files, silence_db=-60)
    assert set(audio) == {"x.wav"}
    assert report.refused == [("zero.wav", "silent (below -60 dBFS rms): 1 piece, 0.006 s, at 0 s")]


def test_pieces_are_brought_to_the_loudness(packed: Any, encode: Encode, noise: Noise) -> None:
    files = {"x.wav": encode(0.05 * noise(48_000, 2), 16_000), "loud.wav": encode(noise(48_000), 16_000)}
    report, audio, meta = packed(files, format="flac", lufs=-23)
    for name, samples in audio.items():
        assert pyloudnorm.Meter(16_000).integrated_loudness(samples) == pytest.approx(-23, abs=0.02)
        assert meta[name]["lufs"] == -23
        rms_db = 20 * math.log10(np.sqrt(np.mean(samples**2)))
        assert meta[name]["level_db"] == pytest.approx(rms_db, abs=0.02)
    assert meta["x.wav"]["gain_db"] > 0 > meta["loud.wav"]["gain_db"]
    assert report.manifest["loudness"] == {"limited": 0, "unknown": 0}


def test_peaks_hold_the_loudness_back_and_are_counted(packed: Any, encode: Encode, noise: Noise) -> None:
    samples = 0.01 * noise(16_000)
    samples[8000] = 0.9
    report, audio, meta = packed({"x.wav": encode(samples, 16_000, subtype="FLOAT")}, format="pcm16", lufs=-10)
    assert np.abs(audio["x.wav"]).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)
    assert meta["x.wav"]["gain_limited"] is True
    assert meta["x.wav"]["lufs"] < -10
    assert report.manifest["loudness"] == {"limited": 1, "unknown": 0}
    assert report.manifest["clipped"] == {"clips": 0, "samples": 0}
    over = {"over.wav": encode(2 * np.ones(16_000) * np.sin(np.arange(16_000)), 16_000, subtype="FLOAT")}
    _, audio, _ = packed(over, format="pcm16", lufs=-1)
    assert np.abs(audio["over.wav"]).max() <= 10 ** (-1 / 20) + 1e-4


def test_pieces_too_short_for_a_gate_are_measured_as_one_block(packed: Any, encode: Encode, noise: Noise) -> None:
    files = {f"{n}.wav": encode(0.1 * noise(n), 16_000) for n in (1, 37, 3001, 6399, 6400)}
    _, audio, meta = packed(files, format="flac", lufs=-30)
    long = np.tile(audio["3001.wav"], (10, 1))
    assert pyloudnorm.Meter(16_000).integrated_loudness(long) == pytest.approx(-30, abs=0.2)
    assert all(one["lufs"] is None or math.isfinite(one["lufs"]) for one in meta.values())
    assert meta["6399.wav"]["lufs"] == meta["6400.wav"]["lufs"] == -30


def test_what_is_too_quiet_to_have_a_loudness_stays_as_it_is(packed: Any, encode: Encode, noise: Noise) -> None:
    files = {"zero.wav": encode(np.zeros(8000), 16_000), "faint.wav": encode(1e-4 * noise(8000), 16_000)}
    report, audio, meta = packed(files, format="flac", lufs=-23)
    assert [meta[name]["lufs"] for name in ("zero.wav", "faint.wav")] == [None, None]
    assert not audio["zero.wav"].any()
    assert report.manifest["loudness"] == {"limited": 0, "unknown": 2}
    assert meta["zero.wav"]["level_db"] == -140


def test_loudness_of_more_than_5_channels_is_refused(packed: Any, encode: Encode, noise: Noise) -> None:
    files = {"x.wav": encode(noise(8000), 16_000), "six.wav": encode(noise(8000, 6), 16_000)}
    report, _, _ = packed(files, format="flac", lufs=-23)
    assert report.refused == [("six.wav", "has 6 channels; loudness is defined for at most 5: set channels")]


def test_samples_over_full_scale_are_clipped_and_counted(packed: Any, encode: Encode) -> None:
    samples = np.array([0.5, 1.5, -2, 1.0, -1.0, 0.25] * 10)
    report, audio, meta = packed({"x.wav": encode(samples, 16_000, subtype="FLOAT")}, format="flac")
    assert audio["x.wav"].max() == 32767 / 32768
    assert meta["x.wav"]["clipped"] == 20
    assert report.manifest["clipped"] == {"clips": 1, "samples": 20}


def test_files_too_long_for_one_piece_are_refused_with_what_to_do(
    packed: Any, encode: Encode, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_MAX_PIECE", 3000)
    files = {"long.wav": encode(noise(32_000), 16_000), "x.wav": encode(noise(2000), 16_000)}
    report, _, _ = packed(files, format="flac")
    assert report.refused == [("long.wav", "is 2 s long, which is too long for one piece: set segment_s")]
    assert packed(files, format="flac", segment_s=0.1)[0].refused == []
    assert packed(files)[0].refused == []  # bytes are kept at any length


def test_large_files_are_kept_byte_for_byte_too(
    packed: Any, encode: Encode, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"x.flac": encode(noise(20_000), 16_000, "FLAC")}
    report, _, meta = packed(files)
    monkeypatch.setattr(form_module, "IN_MEMORY", 1000)
    again, _, meta_again = packed(files)
    assert meta_again == meta
    assert [shard["sha256"] for shard in again.shards] == [shard["sha256"] for shard in report.shards]


def test_a_fault_in_a_long_file_leaves_out_what_lies_around_it(
    packed: Any, encode: Encode, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = noise(160_000)
    samples[80_000] = np.nan
    files = {"x.wav": encode(samples, 16_000, subtype="FLOAT"), "y.wav": encode(noise(100), 16_000)}
    for task_bytes in (form_module.IN_MEMORY, 3 * 2 * 16_000):
        monkeypatch.setattr(form_module, "IN_MEMORY", task_bytes)
        report, audio, _ = packed(files, format="flac", segment_s=1)
        assert set(audio) == {"y.wav@0", *(f"x.wav@{number}" for number in range(10) if number != 5)}
        reason = "left out from 5 to 6 s: holds NaN or infinite samples, the first at 5.000 s"
        assert report.refused == [("x.wav", reason)]
