"""Pieces of long files are those of the whole file resampled; 16 bits hold what they should."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio

from audio_diffusion.data.audio import recording
from audio_diffusion.data.audio.reading import UnusableAudio
from audio_diffusion.data.audio.recording import Recording, encode, probe, resampled_length, to_int16

Encode = Callable[..., bytes]
Noise = Callable[..., Any]


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (16_000, 44_100), (48_000, 44_100), (22_050, 22_050)])
def test_pieces_are_those_of_the_whole_file_resampled(
    encode: Encode, noise: Noise, tmp_path: Path, format: str, rate: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_BLOCK", 7_001)
    path = tmp_path / f"x.{format.lower()}"
    path.write_bytes(encode(noise(3 * rate + 123, 2), rate, format))
    whole = torch.from_numpy(sf.read(path, dtype="float32")[0].T)
    expected = torchaudio.transforms.Resample(rate, wanted)(whole).numpy()
    info = probe(path)
    assert resampled_length(info, wanted) - expected.shape[1] in (0, 1)  # torchaudio rounds the length in float32
    pieces, start = [], 0
    f = Recording(path, info)
    for count in (1, 9_999, 31_234, 10**9):
        pieces.append(f.read(start, count, wanted, 2))
        start += pieces[-1].shape[1]
    f.close()
    joined = np.concatenate(pieces, 1)
    assert joined.shape[1] - expected.shape[1] in (0, 1)
    np.testing.assert_allclose(joined[:, : expected.shape[1]], expected, atol=2e-6)


def test_the_length_of_an_mp3_is_counted_not_estimated(encode: Encode, noise: Noise, tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    data = encode(noise(44_100), 44_100, "MP3")
    path.write_bytes(data[: len(data) // 2])
    info = probe(path)
    assert info.frames == len(sf.read(path)[0]) < 44_100
    assert probe(path, exact=False).frames > info.frames


def test_16_bit_sources_come_out_as_they_went_in() -> None:
    every = np.arange(-32768, 32768, dtype=np.int16)
    samples, over = to_int16(every[None].astype(np.float32) / 32768)
    np.testing.assert_array_equal(samples[0], every)
    assert over == 0
    for format in ("FLAC", "WAV"):
        read, rate = sf.read(io.BytesIO(encode(samples, 16_000, format)), dtype="int16")
        np.testing.assert_array_equal(read, every)
        assert rate == 16_000


def test_finer_samples_are_rounded_and_those_over_full_scale_clipped_and_counted() -> None:
    steps = np.array([[0.4, 0.6, -0.6, 1.5, 32767.4, 32768, -32768, 32768.6, -32769, 99999]], dtype=np.float32)
    samples, over = to_int16(steps / np.float32(32768))
    assert samples[0].tolist() == [0, 1, -1, 2, 32767, 32767, -32768, 32767, -32768, 32767]
    assert over == 3


def test_what_a_format_cannot_hold_is_said() -> None:
    with pytest.raises(UnusableAudio, match="FLAC cannot hold 9 channels at 16000 Hz"):
        encode(np.zeros((9, 10), dtype=np.int16), 16_000, "FLAC")
