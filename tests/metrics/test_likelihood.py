"""The variational bound against closed forms: each part, on white and coloured noise, for every kind of schedule."""

import math

import pytest
import torch
import torch.nn.functional as F

from audio_diffusion.diffusion.schedules import explicit
from audio_diffusion.metrics.likelihood import (
    Bound,
    _draw_levels,
    ends,
    log_bin,
    quantise,
    time_at,
    uniform,
    variational_bound,
)

SCHEDULES = ("linear", "cosine", "exploding", "straight")


def everything(audio):
    return torch.ones(len(audio), 1, audio.shape[-1], dtype=torch.bool)


def time_for(schedule_and_t_min, log_snr: float) -> float:
    return time_at(schedule_and_t_min[0], torch.tensor([log_snr], dtype=torch.float64), schedule_and_t_min[1]).item()


def total(bound: Bound) -> torch.Tensor:
    return bound.prior + bound.diffusion + bound.reconstruction


def test_quantise_rounds_to_16_bits_and_clips_as_they_do():
    audio = torch.tensor([0.0, 0.4 / 32768, 0.6 / 32768, 1.0, 2.0, -1.0, -3.0])
    expected = torch.tensor([0.0, 0.0, 1.0, 32767.0, 32767.0, -32768.0, -32768.0]) / 32768
    assert torch.equal(quantise(audio), expected)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 1e-6), (-0.3, 0.5), (1.5, 0.2), (0.0, 30.0)])
@pytest.mark.parametrize("scale", [1.0, 7.3])
def test_the_bins_of_all_16_bit_values_together_have_probability_1(mean, std, scale):
    every = torch.arange(-32768, 32768, dtype=torch.float64) / 32768 * scale
    log_p = log_bin(every, torch.full_like(every, mean * scale), std * scale, scale)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_p.isfinite().all()  # also thousands of standard deviations away


def test_a_bin_is_one_step_wide_around_its_value():
    x, std = torch.tensor([100.0], dtype=torch.float64) / 32768, 3 / 32768
    normal = torch.distributions.Normal(torch.tensor(102 / 32768, dtype=torch.float64), std)
    expected = normal.cdf(x + 1 / 65536) - normal.cdf(x - 1 / 65536)
    assert log_bin(x, normal.mean, std, 1.0).exp().item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_at_inverts_the_log_snr(schedules, name):
    schedule, t_min = schedules[name]
    t = torch.tensor([0.00213, 0.37041, 0.9007, 0.9993], dtype=torch.float64)
    torch.testing.assert_close(time_at(schedule, schedule.log_snr(t), t_min), t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_steps", [None, 400])
@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_drawn_without_bias(schedules, name, num_steps):
    schedule, _ = schedules[name]
    t_min, u = 1 / 400, (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000

    def wave(log_snr):  # any function of the level will do
        return 1 + torch.sin(log_snr.clamp(min=-20)) + torch.sigmoid(-log_snr)

    _, log_snr, factor, width = _draw_levels(schedule, t_min, num_steps, 5, u)
    estimate = (factor * wave(log_snr)).sum(0).mean()
    if num_steps is None:  # ∫ wave d log(1 + SNR)
        log_snr = torch.linspace(*ends(schedule, t_min), 100_001, dtype=torch.float64)
        expected = -torch.trapezoid(wave(log_snr), F.softplus(log_snr))
    else:  # Σ wave (SNR_s - SNR_t)/(1 + SNR_t)
        _, log_snr, factor, width = _draw_levels(schedule, t_min, num_steps, 400, u[:1])
        snr = schedule.log_snr(torch.arange(1, 401, dtype=torch.float64) / 400).exp()
        torch.testing.assert_close(factor[:, 0], -snr.diff() / (1 + snr[1:]))
        torch.testing.assert_close(
            width.sum(), torch.tensor(ends(schedule, t_min)[0] - ends(schedule, t_min)[1]).double()
        )
        expected = (factor * wave(log_snr)).sum()
    assert estimate.item() == pytest.approx(expected.item(), rel=2e-3)


def expected_parts(schedule, variance, t_min, num_steps, step_size):
    """(L_T, L_t, L_0) per component in nats, of the best denoiser of N(0, variance); bins much narrower than sigma."""
    most, least = (torch.tensor(end, dtype=torch.float64) for end in ends(schedule, t_min))
    cos2 = torch.sigmoid(least)
    prior = 0.5 * (cos2 * (variance - 1) + F.softplus(least))
    if num_steps is None:
        diffusion = 0.5 * torch.log((1 + variance * most.exp()) / (1 + variance * least.exp()))
    else:
        snr = schedule.log_snr(torch.linspace(t_min, 1, num_steps, dtype=torch.float64)).exp()[:, None]
        diffusion = (0.5 * (snr[:-1] - snr[1:]) * variance / (1 + variance * snr[1:])).sum(0)
    left = variance / (1 + variance * most.exp()) * most.exp()
    reconstruction = 0.5 * (math.log(2 * math.pi) - most) - math.log(step_size) + 0.5 * left
    return prior.mean(), diffusion.mean(), reconstruction.mean()


@pytest.mark.parametrize("num_steps", [None, 12, 300])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("data", ["white", "coloured"])
def test_each_part_is_what_the_closed_form_says(schedules, generators, request, name, num_steps, data):
    gaussian, (schedule, _), scale, t_min = (
        request.getfixturevalue(data),
        schedules[name],
        8.0,
        time_for(schedules[name], 12.0),
    )
    audio = gaussian.draw(256)  # far inside full scale, which is ±8
    found = variational_bound(
        gaussian.denoise(schedule), schedule, audio, everything(audio), scale, generators(256),
        t_min=t_min, num_steps=num_steps, num_levels=24,
    )  # fmt: skip
    parts = expected_parts(schedule, gaussian.variance, t_min, num_steps, scale / 32768)
    for got, wanted in zip(found[:3], parts, strict=True):
        assert got.mean().item() / 64 == pytest.approx(wanted.item(), rel=0.02, abs=0.005)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_falls_with_more_steps_and_comes_close_to_the_exact_bits(schedules, generators, coloured, name):
    schedule, scale = schedules[name][0], 8.0
    t_min = time_for(schedules[name], 15.0)  # -65 dB: below the quietest component, and still wider than a bin
    audio = coloured.draw(512)
    exact = (coloured.nats(audio).mean().item() - math.log(scale / 32768)) / math.log(2)
    bits = []
    for num_steps in (30, 300, None):
        found = variational_bound(
            coloured.denoise(schedule), schedule, audio, everything(audio), scale, generators(512),
            t_min=t_min, num_steps=num_steps, num_levels=48,
        )  # fmt: skip
        bits.append(total(found).mean().item() / 64 / math.log(2))
    assert bits[0] > bits[1] > bits[2]
    assert bits[1] > exact + 0.1
    assert bits[2] == pytest.approx(exact, abs=0.03)  # four times the error of so many draws


def test_the_prior_counts_the_signal_that_is_left_in_x_1(generators, white):
    schedule, audio = explicit([0.9, 0.8, 0.7]), white.draw(4)
    found = variational_bound(
        white.denoise(schedule), schedule, audio, everything(audio), 8.0, generators(4), t_min=1 / 3, num_steps=3
    )
    alpha_bar = 0.9 * 0.8 * 0.7
    x_1 = torch.distributions.Normal(alpha_bar**0.5 * audio, (1 - alpha_bar) ** 0.5)
    standard = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
    divergence = torch.distributions.kl_divergence(x_1, standard).flatten(1).sum(1)
    torch.testing.assert_close(found.prior, divergence, rtol=1e-6, atol=0)


def test_padding_is_not_counted_and_channels_are(schedules, generators, coloured):
    schedule, _ = schedules["linear"]
    audio = coloured.draw(128, channels=2)
    mask = torch.arange(64) < torch.tensor([64] * 64 + [16] * 63 + [0])[:, None]
    audio = torch.where(mask[:, None], audio, 0.0)
    found = total(
        variational_bound(
            coloured.denoise(schedule), schedule, audio, mask[:, None], 8.0, generators(128),
            t_min=1e-3, num_steps=None,
        )
    )  # fmt: skip
    whole, short = coloured.variance, coloured.variance[:16]
    for got, variance in ((found[:64], whole), (found[64:-1], short)):
        wanted = sum(expected_parts(schedule, variance, 1e-3, None, 8 / 32768)) * 2 * len(variance)
        assert got.mean().item() == pytest.approx(wanted.item(), rel=0.01)
    assert found[-1] == 0  # a slot without a clip


def test_a_clip_has_the_same_bound_alone_and_in_any_batch(schedules, generators, coloured):
    schedule, _ = schedules["cosine"]
    audio = coloured.draw(3)

    def bound(clips, seeds):
        denoise, mask = coloured.denoise(schedule), everything(clips)
        return variational_bound(denoise, schedule, clips, mask, 8.0, seeds, t_min=1e-3, num_steps=1000, num_levels=4)

    together, alone = bound(audio, generators(3)), bound(audio[1:2], generators(1, first=1))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-10, atol=0)


def test_a_chain_of_one_step_is_prior_and_reconstruction(schedules, generators, white):
    schedule, audio = schedules["straight"][0], white.draw(2)
    found = variational_bound(
        white.denoise(schedule), schedule, audio, everything(audio), 8.0, generators(2), t_min=0.5, num_steps=1
    )
    assert found.diffusion.tolist() == [0, 0]
    assert found.nats.shape == (2, 0)


def test_uniform_numbers_belong_to_their_clip(generators):
    assert torch.equal(uniform(generators(3), 5)[2:], uniform(generators(1, first=2), 5))
