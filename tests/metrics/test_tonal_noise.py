"""The noise between partials is the level it was made with."""

import math

import pytest
import torch

from audio_diffusion.metrics.tonal_noise import noise_between_partials

RATE = 16_000


def tone(noise_db: float) -> torch.Tensor:
    """A decaying tone of 200 Hz with white noise, [1, 1, 8192]."""
    time = torch.arange(8192) / RATE
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8192, generator=generator) * 10 ** (noise_db / 20)
    return (torch.sin(2 * math.pi * 200 * time) * torch.exp(-time / 0.3) + noise)[None, None]


def test_more_noise_is_heard_decibel_by_decibel() -> None:
    clips = torch.cat([tone(-60), tone(-54), tone(-40)])
    found = noise_between_partials(clips, RATE)
    assert (found[1] - found[0]).item() == pytest.approx(6, abs=0.5)
    assert (found[2] - found[0]).item() == pytest.approx(20, abs=0.5)


def test_the_level_of_the_clip_does_not_count_and_silence_is_0() -> None:
    found = noise_between_partials(torch.cat([tone(-50), 0.01 * tone(-50), 0 * tone(-50)]), RATE)
    assert found[0].item() == pytest.approx(found[1].item(), abs=0.01)
    assert found[2] == 0


def test_short_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected clips of at least 0\.22 s"):
        noise_between_partials(torch.zeros(1, 1, 3000), RATE)
