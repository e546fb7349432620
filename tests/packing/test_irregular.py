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

from audio_diffusion.data.audio import read_crop
from audio_diffusion.packing.pack import PackReport, pack
from audio_diffusion.packing.prepare import Form
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
    assert reason.startswith("used without what it lacks: ")
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


def test_what_libsndfile_does_not_know_is_named_with_what_would_read_it(
    packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"x.m4a": b"\0\0\0\x1cftypM4A " + bytes(500)}
    report, _ = packed(files)
    assert report.refused == [
        ("x.m4a", "m4a can be converted, not kept, as training does not read it: set format=flac")
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
