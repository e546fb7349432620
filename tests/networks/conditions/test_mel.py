"""The mel that networks are told: where its frames lie, what they measure."""

import math
from typing import Any

import pytest
import torch

from audio_diffusion.networks.conditions.mel import FLOOR, Mel

RATE = 16_000


def mel(**options: Any) -> Mel:
    return Mel(**{"sample_rate": RATE, "channels": 1, "n_mels": 20, "n_fft": 256, "hop": 64, **options})


def test_a_frame_lies_in_the_middle_of_its_hop() -> None:
    audio = torch.zeros(1, 1, 1024)
    audio[0, 0, 64 * 7 + 32] = 1
    energy = (3 * mel().prepare(audio, "cpu")[0] - 5).exp().sum(0)
    assert energy.shape == (16,)
    assert energy.argmax() == 7
    torch.testing.assert_close(energy[8:11], energy[4:7].flip(0), rtol=1e-4, atol=1e-6)


def test_a_tone_is_in_its_band_and_a_louder_one_is_higher_by_its_level() -> None:
    tone = torch.sin(2 * math.pi * 2000 * torch.arange(2048) / RATE)[None, None]
    quiet, loud = (mel().prepare(gain * tone, "cpu")[0, :, 4:-4].mean(1) for gain in (0.05, 0.5))
    centre = 15 + math.log(2000 / 1000) / math.log(6.4) * 27  # Slaney's mel of 2 kHz; the range ends at that of 8 kHz
    top = 15 + math.log(8000 / 1000) / math.log(6.4) * 27
    assert abs(quiet.argmax().item() - (centre / top * 21 - 1)) < 1
    assert (loud - quiet).max() == pytest.approx(math.log(10) / 3, rel=1e-3)


def test_silence_is_the_floor_and_noise_has_about_unit_size() -> None:
    silent = mel().prepare(torch.zeros(1, 1, 256), "cpu")
    torch.testing.assert_close(silent, torch.full_like(silent, (math.log(FLOOR) + 5) / 3))
    assert silent.min() > -2.5
    noise = mel().prepare(0.1 * torch.randn(1, 1, 16384, generator=torch.Generator().manual_seed(0)), "cpu")
    assert noise.abs().mean() < 2


def test_each_channel_has_a_spectrogram_of_its_own() -> None:
    audio = torch.randn(2, 2, 512, generator=torch.Generator().manual_seed(0))
    stereo = mel(channels=2).prepare(audio, "cpu")
    assert stereo.shape == (2, 40, 8)
    for channel in (0, 1):
        alone = mel().prepare(audio[:, channel : channel + 1], "cpu")
        torch.testing.assert_close(stereo[:, 20 * channel : 20 * channel + 20], alone)


def test_bands_may_be_told_as_they_are() -> None:
    bands = mel(embed=False).prepare(torch.randn(2, 1, 512, generator=torch.Generator().manual_seed(0)), "cpu")
    embedder = mel(embed=False).embedder(20)
    assert torch.equal(embedder(bands), bands)
    assert embedder(mel().nothing(2)).abs().max() == 0  # learnt from there on
    with pytest.raises(ValueError, match="cond_width: expected 20, the rows of a mel that is not embedded, got 32"):
        mel(embed=False).embedder(32)


def test_it_is_the_same_under_autocast() -> None:
    audio = torch.randn(1, 1, 512, generator=torch.Generator().manual_seed(0))
    full = mel().prepare(audio, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mel().prepare(audio, "cpu"), full)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 0}, "hop: expected at least 1, got 0"),
        ({"n_mels": 0}, "n_mels: expected at least 1, got 0"),
        ({"hop": 512}, r"hop: expected n_fft \(256\) less an even number, got 512"),
        ({"hop": 63}, r"hop: expected n_fft \(256\) less an even number, got 63"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mel(**options)


def test_a_spectrogram_is_told_as_the_audio_is() -> None:
    audio = 0.1 * torch.randn(2, 1, 512)
    assert torch.equal(mel().prepare(mel().spectrogram(audio), "cpu"), mel().prepare(audio, "cpu"))
    digital_silence = torch.full((1, mel().num_rows, 8), -torch.inf)
    assert torch.equal(mel().prepare(digital_silence, "cpu"), mel().prepare(torch.zeros(1, 1, 512), "cpu"))


@pytest.mark.parametrize("shape", [(2, 1, 500), (2, 2, 512), (1, 512), (1, 1, 128)])
def test_audio_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mel: expected audio \[B, 1, a multiple of 64 \(hop\), at least 256"):
        mel().prepare(torch.zeros(shape), "cpu")
