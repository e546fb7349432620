"""What is packed of files that lack something, and of what needs FFmpeg; how much of them does not depend on how."""

import builtins
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from audio_diffusion.data.audio.reading import read_crop
from audio_diffusion.packing.form import Form
from audio_diffusion.packing.pack import PackReport, pack
from audio_diffusion.packing.sources import Source, scan_folder
from audio_diffusion.packing.verify import verify

Encode = Callable[..., bytes]
Noise = Callable[..., Any]


@pytest.fixture
def packed(tmp_path: Path, encode: Encode) -> Callable[..., tuple[PackReport, Path]]:
    """packed({name: bytes}, **form) -> (report, shards); v.wav is held out."""

    def made(files: dict[str, bytes], **form: Any) -> tuple[PackReport, Path]:
        number = len(list(tmp_path.iterdir()))
        folder, output = tmp_path / f"in{number}", tmp_path / f"out{number}"
        folder.mkdir()
        for name, data in {**files, "t.wav": encode([0.5] * 100, 16_000), "v.wav": encode([0.5] * 100, 16_000)}.items():
            (folder / name).write_bytes(data)
        sources = [
            Source(source.path, source.name, {"split": "val" if source.name == "v.wav" else "train"})
            for source in scan_folder(folder, False)
        ]
        return pack(sources, output, form=Form(**form)), output

    return made


def without_a_page(data: bytes) -> bytes:
    """An Ogg file without one of its pages in the middle."""
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]
    middle = len(starts) // 2
    return data[: starts[middle]] + data[starts[middle + 1] :]


def test_a_flac_of_unknown_length_is_cut_to_its_end(packed: Any, encode: Encode, noise: Noise, clips_of: Any) -> None:
    samples = np.round(0.3 * noise(40_000) * 32768) / 32768
    flac = encode(samples, 16_000, "FLAC")
    data = flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]
    report, output = packed({"x.flac": data}, format="flac", segment_s=1)
    clips = {
        name: sf.read(io.BytesIO(audio))[0] for name, (_, audio, _) in clips_of(output).items() if "x.flac" in name
    }
    np.testing.assert_array_equal(np.concatenate([clips[name] for name in sorted(clips)]), samples[:, 0])
    assert report.refused == []
    kept, output = packed({"x.flac": data})
    assert kept.manifest["seconds"]["train"] == pytest.approx(2.5 + 100 / 16_000, abs=1e-3)
    assert verify(str(output)).problems == []


@pytest.mark.parametrize("form", [{}, {"format": "flac"}, {"format": "flac", "segment_s": 0.5, "sample_rate": 22_050}])
def test_what_a_damaged_file_lacks_is_named_and_does_not_depend_on_the_form(
    packed: Any, encode: Encode, noise: Noise, form: dict[str, Any]
) -> None:
    data = without_a_page(encode(0.3 * noise(8 * 44_100), 44_100, "OGG"))
    report, output = packed({"x.ogg": data}, **form)
    ((name, reason),) = report.refused
    assert name == "x.ogg"
    assert reason.startswith("used, although audio is missing: ")
    assert "pages are damaged or not there" in reason
    missing = report.manifest["missing"]
    assert missing["files"] == 1
    packed_s = report.manifest["seconds"]["train"] + report.manifest["rests"]["seconds"] - 100 / 16_000
    assert packed_s + missing["seconds"] == pytest.approx(8, abs=0.01)
    assert report.manifest["files"]["refused"] == 0
    assert verify(str(output)).problems == []
    refused, _ = packed({"x.ogg": data}, **form, max_missing=0.01)
    ((_, reason),) = refused.refused
    assert "more than max_missing=0.01 allows" in reason
    assert refused.manifest["missing"]["files"] == 0


@pytest.mark.parametrize("form", [{}, {"format": "flac"}])
def test_with_max_missing_0_a_file_that_lacks_an_unknown_amount_is_refused(
    packed: Any, encode: Encode, noise: Noise, form: dict[str, Any]
) -> None:
    data = encode(0.3 * noise(4 * 44_100), 44_100, "OGG")
    files = {"whole.ogg": data, "x.ogg": data[:-100]}  # its last page is cut
    report, _ = packed(files, **form)
    ((name, reason),) = report.refused
    assert (name, "an unknown length missing at " in reason) == ("x.ogg", True)
    assert reason.startswith("used, although audio is missing: ")
    strict, _ = packed(files, **form, max_missing=0)
    ((name, reason),) = strict.refused
    assert (name, strict.manifest["files"]["refused"], strict.clips["train"]) == ("x.ogg", 1, 2)
    assert reason.startswith("an unknown length missing at ")
    assert reason.endswith("max_missing=0 allows no file that lacks anything")


def test_what_libsndfile_does_not_know_is_named_with_what_would_read_it(
    packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"x.m4a": b"\0\0\0\x1cftypM4A " + bytes(500)}
    report, _ = packed(files)
    assert report.refused == [
        ("x.m4a", "m4a cannot be kept, because training does not read it; set format=flac to convert it")
    ]
    imported = builtins.__import__

    def without_av(name: str, *args: Any, **options: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_av)
    report, _ = packed(files, format="flac")
    ((name, reason),) = report.refused
    assert (name, "pip install -e '.[av]'" in reason) == ("x.m4a", True)


def test_crops_of_a_kept_file_have_the_length_that_its_index_tells(encode: Encode, noise: Noise) -> None:
    data = without_a_page(encode(0.3 * noise(8 * 44_100), 44_100, "OGG"))
    crop = torch.empty(1, 1000)
    assert read_crop(memoryview(data), crop, 44_100, 1.0, frames=300_000).seconds_total == 300_000 / 44_100


@pytest.mark.parametrize(
    ("form", "kept", "what"),
    [
        ({}, 0, ""),
        ({"format": "flac"}, 0, ""),
        ({"format": "flac", "segment_s": 0.5}, 59, "left out from 15 to 15.5 s: "),
        ({"format": "flac", "segment_s": 2}, 14, "left out from 14 to 16 s: "),
        ({"format": "pcm16", "segment_s": 0.5, "sample_rate": 22_050}, 59, "left out from 15 to 15.5 s: "),
    ],
)
@pytest.mark.parametrize("task_bytes", [1_000, 16_000_000])
def test_a_sample_that_is_no_number_costs_the_clip_that_would_hold_it(
    packed: Any,
    encode: Encode,
    noise: Noise,
    monkeypatch: pytest.MonkeyPatch,
    form: dict[str, Any],
    kept: int,
    what: str,
    task_bytes: int,
) -> None:
    monkeypatch.setattr("audio_diffusion.packing.form.IN_MEMORY", task_bytes)
    samples = 0.1 * noise(30 * 8000)
    samples[15 * 8000 + 2000] = np.nan
    report, _ = packed({"x.wav": encode(samples, 8000, subtype="FLOAT")}, **form)
    assert report.refused == [("x.wav", f"{what}holds NaN or infinite samples, the first at 15.250 s")]
    assert report.clips["train"] == kept + 1


def test_pieces_in_a_row_that_cannot_be_used_are_named_as_one_stretch(
    packed: Any, encode: Encode, noise: Noise
) -> None:
    samples = 0.1 * noise(10 * 8000)
    samples[2 * 8000 : 5 * 8000] = 1e9
    samples[8 * 8000] = np.inf
    report, _ = packed({"x.wav": encode(samples, 8000, subtype="FLOAT")}, format="flac", segment_s=1)
    assert [reason for _, reason in report.refused] == [
        "left out from 2 to 5 s: holds samples of 1e+09, where full scale is 1, the first at 2.000 s",
        "left out from 8 to 9 s: holds NaN or infinite samples, the first at 8.000 s",
    ]
    assert report.clips["train"] == 6 + 1


def test_rests_are_named_and_counted(packed: Any, encode: Encode, noise: Noise) -> None:
    files = {"x.wav": encode(0.1 * noise(2_300), 1_000), "y.wav": encode(0.1 * noise(2_600), 1_000)}
    report, output = packed(files, format="flac", segment_s=1)
    rows = (output / "refused.csv").read_text().splitlines()
    assert rows == ["file,reason", "x.wav,its last 0.300 s are left out: less than half a piece"]
    assert report.manifest["rests"] == {"pieces": 1, "seconds": 0.3}
    assert report.refused == []  # used, but for that


def test_what_macos_keeps_beside_files_is_no_audio(packed: Any, encode: Encode, noise: Noise) -> None:
    mp3 = encode(0.1 * noise(16_000), 16_000, "MP3")
    report, _ = packed({"x.mp3": mp3, "._x.mp3": b"\0\5\x16\7\0\2\0\0" + bytes(4000), "._y.wav": b"\0\5\x16\7"})
    assert report.refused == []
    assert report.manifest["files"]["found"] == 3
