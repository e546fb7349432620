"""From clips to noise and back, and between two clips."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Prediction
from audio_diffusion.diffusion.editing.inversion import interpolate, invert, slerp
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, linear, lowered, zero_terminal_snr
from audio_diffusion.diffusion.solvers.ddim import ddim

LENGTH = 48
Cov = Callable[[int], Tensor]
NetOf = Callable[[Diffusion, Tensor], Net]


def error_db(again: Tensor, clip: Tensor) -> float:
    return 10 * torch.log10((again - clip).square().mean() / clip.square().mean()).item()


@pytest.mark.parametrize("num_steps", [10, 50])
def test_there_and_back(num_steps: int, process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    """Euler's steps the other way are off by -10 and -18 dB."""
    clip = draw(covariance(LENGTH), 500)
    denoise = process.denoiser(net_of(process, covariance(LENGTH)), {})
    noise = invert(denoise, clip, process.schedule, num_steps=num_steps)
    again = ddim(denoise, noise, process.schedule, torch.Tensor, num_steps=num_steps, grid=balanced)
    assert error_db(again, clip) < -80
    if num_steps == 50:
        assert (torch.cov(noise[:, 0].T) - torch.eye(LENGTH)).square().mean().sqrt() < 0.06  # by chance 1/√500 = 0.045


@pytest.mark.parametrize("schedule", [lowered(linear()), zero_terminal_snr(linear()), VarianceExploding(), Flow()])
def test_there_and_back_where_the_denoiser_is_steep(schedule: Schedule) -> None:
    """Each sample is about 1 or about -1: between the two the estimate of x0 changes faster than any Gaussian's."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(30, 1, 8, generator=generator).sign() + 0.1 * torch.randn(30, 1, 8, generator=generator)

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        assert isinstance(t, float)
        alpha, sigma = schedule.at(t)
        variance = 0.01 * alpha**2 + sigma**2
        sign = torch.tanh(alpha * x_t / variance)
        x0 = sign + 0.01 * alpha / variance * (x_t - alpha * sign)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    noise = invert(denoise, clip, schedule, num_steps=25)
    again = ddim(denoise, noise, schedule, torch.Tensor, num_steps=25, grid=balanced)
    assert error_db(again, clip) < -50


def test_noise_comes_back_as_well(process: Diffusion, covariance: Cov, net_of: NetOf) -> None:
    """The noise is the one that the clip was made of, not just one that makes it."""
    denoise = process.denoiser(net_of(process, covariance(LENGTH)), {})
    noise = torch.randn(20, 1, LENGTH, generator=torch.Generator().manual_seed(1))
    clip = ddim(denoise, noise, process.schedule, torch.Tensor, num_steps=50, grid=balanced)
    torch.testing.assert_close(invert(denoise, clip, process.schedule, num_steps=50), noise, rtol=0, atol=0.02)


def test_slerp_keeps_the_level_and_the_ends() -> None:
    a, b = torch.randn(2, 3, 2, 500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    for weight in (0.25, 0.5):
        assert slerp(a, b, weight).std().item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(slerp(a, a, 0.5), a)


@pytest.mark.parametrize("strength", [0.5, 0.9, 1.0])
def test_ends_are_the_clips_and_the_middle_is_like_the_data(
    strength: float, process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    """The mean of two clips would be 3 dB too quiet."""
    first, second = draw(covariance(LENGTH), 1000).chunk(2)
    net, calls = net_of(process, covariance(LENGTH)), []
    options = {"strength": strength, "num_steps": 25, "progress": lambda: calls.append(1)}
    made = interpolate(net, process, first, second, [0, 0.5, 1], {}, **options)
    assert made.clips.shape == (500, 3, 1, LENGTH)
    assert torch.equal(made.clips[:, 0], first)
    assert torch.equal(made.clips[:, 2], second)
    assert made.clips[:, 1].square().mean().item() == pytest.approx(1, abs=0.05)
    assert made.error_db.shape == (500, 2)
    assert made.error_db.mean().item() < -80
    assert len(calls) == 5


@pytest.mark.parametrize("guidance", [None, Guidance(2.0)])
def test_guided_or_not_it_comes_back(
    guidance: Guidance | None, process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    first, second = draw(covariance(LENGTH), 40).chunk(2)
    exact = net_of(process, covariance(LENGTH))
    net = lambda x_t, t, cond: exact(x_t, t, cond) + 0.1 * cond["label"][:, None, None].clamp(min=0)  # noqa: E731
    told = {"label": torch.ones(20, dtype=torch.long)}
    made = interpolate(net, process, first, second, [0.5], told, num_steps=25, guidance=guidance)
    assert made.error_db.max().item() < -70


def test_near_the_ends_it_is_near_the_clips_even_if_inversion_fails(
    process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    """Said, and made up for: there is no way back from the one time at which all is noise."""
    first, second = draw(covariance(LENGTH), 40).chunk(2)
    net = net_of(process, covariance(LENGTH))
    made = interpolate(net, process, first, second, [0, 0.001, 1], {}, strength=1, num_steps=1)
    assert made.error_db.mean().item() > -40
    assert torch.equal(made.clips[:, 0], first)
    assert (made.clips[:, 1] - first).square().mean().item() < 1e-4


def test_a_pair_is_the_same_in_any_batch(process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    first, second = draw(covariance(LENGTH), 6).chunk(2)
    net = net_of(process, covariance(LENGTH))
    together = interpolate(net, process, first, second, [0.3], {}, num_steps=20).clips
    alone = [
        interpolate(net, process, first[i : i + 1], second[i : i + 1], [0.3], {}, num_steps=20).clips for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_bad_values_are_refused(process: Diffusion) -> None:
    clip, net = torch.zeros(2, 1, 8), lambda x_t, t, cond: x_t
    with pytest.raises(ValueError, match="second: expected the first clip's shape"):
        interpolate(net, process, clip, clip[:1], [0.5], {})
    with pytest.raises(ValueError, match="strength: expected more than 0, up to 1"):
        interpolate(net, process, clip, clip, [0.5], {}, strength=0)
    with pytest.raises(ValueError, match="weights: expected numbers from 0"):
        interpolate(net, process, clip, clip, [0.5, 2], {})
