"""Removing white noise: the best there is for Gaussian data, in SNR and in sound; its level, told or estimated."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.noise import estimated_noise_std, noise_std_at, remove_noise
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.unipc import unipc

LENGTH, COUNT = 48, 3000
Cov = Callable[[int], Tensor]
NetOf = Callable[[Diffusion, Tensor], Net]


@pytest.mark.slow
@pytest.mark.parametrize("snr_db", [-5.0, 5.0, 15.0])
def test_errors_are_those_of_theory(
    snr_db: float, process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    """The mean reaches Wiener's error; the flow keeps the level at the least cost; a draw has twice the error."""
    cov, std = covariance(LENGTH), 10 ** (-snr_db / 20)
    clean, values = draw(cov, COUNT), torch.linalg.eigvalsh(cov)
    noisy = clean + std * torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))
    least = (values * std**2 / (values + std**2)).mean().item()
    flow = (2 * values * (1 - (values / (values + std**2)).sqrt())).mean().item()
    samplers = {least: None, flow: partial(unipc, num_steps=40), 2 * least: partial(dpmpp, eta=1.0, num_steps=60)}
    for error, sampler in samplers.items():
        x0 = remove_noise(net_of(process, cov), process, sampler, noisy, std, range(COUNT), {})
        assert (x0 - clean).square().mean().item() == pytest.approx(error, rel=0.05)
        if sampler is not None:
            assert x0.square().mean().item() == pytest.approx(1, abs=0.03)
    assert least < std**2


def gated(noisy: Tensor, std: float, threshold: float) -> Tensor:
    """Spectral gating: what is less than ``threshold`` times the noise, whose level is known, is taken away."""
    window = torch.hann_window(64)
    spectrum = torch.stft(noisy[:, 0], 64, 16, window=window, return_complex=True)
    kept = spectrum.abs() > threshold * std * window.square().sum().sqrt()
    return torch.istft(spectrum * kept, 64, 16, window=window, length=noisy.shape[-1])[:, None]


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_it_is_nearer_than_spectral_gating(snr_db: float, process: Diffusion, net_of: NetOf, draw: Callable) -> None:
    """Of hits: two damped tones that decay, where the gate has the threshold that is best for them."""
    lag = torch.arange(384, dtype=torch.float64)
    tones = 0.6 * 0.97**lag * torch.cos(0.35 * lag) + 0.39 * 0.95**lag * torch.cos(1.7 * lag)
    tones[0] += 0.01
    envelope = torch.exp(-lag / 80)
    cov = tones[(lag[:, None] - lag).abs().long()] * envelope * envelope[:, None]
    clean = draw(cov, 200)
    std = (clean.square().mean() * 10 ** (-snr_db / 10)).sqrt().item()
    noisy = clean + std * torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))

    def error(made: Tensor) -> float:
        return (made - clean).square().mean().item() / std**2

    gate = min(error(gated(noisy, std, threshold / 4)) for threshold in range(4, 17))
    for sampler in (None, partial(unipc, num_steps=25)):
        assert error(remove_noise(net_of(process, cov), process, sampler, noisy, std, range(200), {})) < 0.9 * gate
    assert gate < 0.7  # of the noise


@pytest.mark.parametrize("std", [0.003, 0.03, 0.3])
def test_the_level_is_estimated(std: float) -> None:
    """Under a decaying tone and a burst, in stereo, with digital silence at the end."""
    time = torch.arange(32000) / 16000
    tone = torch.exp(-2 * time) * (440 * 2 * torch.pi * time).sin() + torch.exp(-time) * (3000 * time).sin()
    generator = torch.Generator().manual_seed(0)
    clips = tone.expand(3, 2, -1) + std * torch.randn(3, 2, 32000, generator=generator)
    clips[:, :, 4000:6000] += torch.randn(3, 2, 2000, generator=generator)
    clips[1, :, 24000:] = 0
    found = estimated_noise_std(clips)
    torch.testing.assert_close(found, torch.full((3,), std), rtol=0.12, atol=0)
    assert estimated_noise_std(torch.zeros(1, 1, 4000)).item() == 0
    assert estimated_noise_std(std * torch.randn(1, 1, 200, generator=generator)).item() == pytest.approx(std, rel=0.6)


def test_noise_at_an_snr() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 1, 50000, generator=generator)
    found = noise_std_at(3 * clean + 0.3 * noise, 20.0)
    torch.testing.assert_close(found, torch.full((2,), 0.3), rtol=0.02, atol=0)


def test_bad_values_are_refused(process: Diffusion) -> None:
    with pytest.raises(ValueError, match="noise_std: expected a positive standard deviation, got 0"):
        remove_noise(lambda x_t, t, cond: x_t, process, None, torch.zeros(1, 1, 8), 0.0, [0], {})
