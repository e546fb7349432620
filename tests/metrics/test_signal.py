"""Distances from a reference, against what they must be by arithmetic."""

import math

import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.signal import log_mel_distance, multi_resolution_stft, si_sdr


@pytest.fixture
def noise() -> Tensor:
    """``[2, 1, 8192]``, two clips of different noise."""
    return 0.1 * torch.randn(2, 1, 8192, generator=torch.Generator().manual_seed(0))


def test_si_sdr_is_the_ratio_of_signal_to_what_is_orthogonal_to_it_at_any_gain() -> None:
    time = torch.arange(1000) / 1000
    signal, error = (torch.sin(2 * math.pi * f * time)[None, None] for f in (10, 20))
    for gain in (0.1, 1.0, -3.0):
        assert si_sdr(gain * (signal + 0.1 * error), signal).item() == pytest.approx(20, abs=1e-3)
    assert si_sdr(signal + error, signal).item() == pytest.approx(0, abs=1e-3)
    assert si_sdr(signal, signal).item() > 100


@pytest.mark.parametrize("gain_db", [-6.0, 3.0])
def test_a_gain_is_as_far_as_it_is_loud(noise: Tensor, gain_db: float) -> None:
    gain = 10 ** (gain_db / 20)
    mel = log_mel_distance(gain * noise, noise, 16000)
    torch.testing.assert_close(mel, torch.full((2,), abs(gain_db), dtype=torch.float64), rtol=1e-3, atol=0)
    stft = multi_resolution_stft(gain * noise, noise)
    expected = abs(gain - 1) + abs(math.log(gain))  # spectral convergence, and the difference of natural logarithms
    torch.testing.assert_close(stft, torch.full((2,), expected, dtype=torch.float64), rtol=1e-3, atol=0)


def test_polarity_is_not_heard_and_each_clip_counts_for_itself(noise: Tensor) -> None:
    estimate = torch.stack([-noise[0], noise[0]])
    for distance in (log_mel_distance(estimate, noise, 16000), multi_resolution_stft(estimate, noise)):
        assert distance[0] < 1e-6
        assert distance[1] > 0.5


def test_silence_is_the_floor(noise: Tensor) -> None:
    silence = torch.zeros_like(noise)
    quiet = torch.zeros_like(noise)
    quiet[..., 4000] = 1e-9
    assert log_mel_distance(quiet, silence, 16000).tolist() == [0, 0]
    assert log_mel_distance(noise, silence, 16000).isfinite().all()
    assert si_sdr(silence, noise).isfinite().all()


def test_other_shapes_are_refused(noise: Tensor) -> None:
    for distance in (si_sdr, multi_resolution_stft, lambda a, b: log_mel_distance(a, b, 16000)):
        with pytest.raises(ValueError, match=r"estimate: expected \[B, C, T\] as the reference's \[2, 1, 8192\], got"):
            distance(noise[..., :-1], noise)
