"""From the nats of single clips to bits per dimension, their errors and the curve by noise level."""

import math

import pytest
import torch

from audio_diffusion.metrics.bits import (
    DB_PER_NAT,
    BoundMeter,
    ClipBounds,
    FlowMeter,
    count_dims,
    estimate,
    value_counts,
    white_gaussian,
)
from audio_diffusion.representations.waveform import Waveform


def test_bits_are_all_nats_over_all_dimensions():
    nats = math.log(2) * torch.tensor([[300.0, 300.0], [100.0, 100.0]], dtype=torch.float64)
    found = estimate(nats, torch.tensor([100, 100]))
    assert found.bits_per_dim == pytest.approx(2)
    assert found.standard_error == pytest.approx(1)  # of 3 and 1
    assert found.monte_carlo_error == pytest.approx(0)
    assert estimate(nats, torch.tensor([100, 300])).bits_per_dim == pytest.approx(1)  # not the mean of 3 and 1/3


def test_both_errors_are_as_wide_as_the_spread_they_tell_of():
    generator = torch.Generator().manual_seed(0)
    dims = torch.randint(50, 150, (40,), generator=generator).double()
    found = []
    for _ in range(400):
        clips = dims * (2 + 0.3 * torch.randn(40, generator=generator))  # clips differ by 0.3 nats a dimension
        found.append(estimate(clips[:, None] + 40 * torch.randn(40, 2, generator=generator), dims))
    spread = torch.tensor([f.bits_per_dim for f in found]).std().item()
    assert sum(f.standard_error for f in found) / 400 == pytest.approx(spread, rel=0.1)
    noise = 40 / 2**0.5 * 40**0.5 / dims.sum().item() / math.log(2)
    assert sum(f.monte_carlo_error for f in found) / 400 == pytest.approx(noise, rel=0.05)


def test_without_repeats_or_other_clips_the_errors_are_unknown():
    found = estimate(torch.ones(1, 1), torch.ones(1))
    assert math.isnan(found.standard_error)
    assert math.isnan(found.monte_carlo_error)
    with pytest.raises(ValueError, match="clips: expected at least one that can be used, got none"):
        estimate(torch.ones(0, 1), torch.ones(0))


def bounds(white, schedule, audio, mask, scale=8.0, **options) -> ClipBounds:
    keys = [("clip", i) for i in range(len(audio))]
    return BoundMeter(**options)(white.denoise(schedule, scale), schedule, audio, mask, Waveform(scale), keys)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", ["linear", "exploding"])
def test_the_curve_is_that_of_white_noise_and_its_area_is_l_t(schedules, white, name, continuous):
    schedule, audio = schedules[name][0], white.draw(128) / 8
    quiet, mask = type(white)(white.variance / 64), torch.ones(128, 1, 64, dtype=torch.bool)
    found = bounds(quiet, schedule, audio, mask, continuous=continuous, num_levels=64)
    curve = found.curve()
    snr = torch.tensor(curve.snr_db).div(DB_PER_NAT).exp()
    torch.testing.assert_close(torch.tensor(curve.loss), snr / (1 + snr), rtol=0.2, atol=1e-3)
    louder = [b for b, db in zip(curve.bits_per_db, curve.snr_db, strict=True) if 20 < db < 35]
    coarse = 0.0 if continuous else 0.02  # the steps of a chain are wide there, and cost more
    assert sum(louder) / len(louder) == pytest.approx(1 / 6.02, rel=0.05, abs=coarse)  # 6 dB a bit
    assert curve.snr_db == sorted(curve.snr_db, reverse=True)
    area = -torch.trapezoid(torch.tensor(curve.bits_per_db), torch.tensor(curve.snr_db))
    assert area.item() == pytest.approx(found.parts()["L_t"].bits_per_dim, rel=0.05 if continuous else 0.2)


def test_parts_add_up_and_the_errors_say_what_they_should(schedules, white):
    schedule, audio = schedules["linear"][0], white.draw(32) / 8
    found = bounds(type(white)(white.variance / 64), schedule, audio, torch.ones(32, 1, 64, dtype=torch.bool))
    parts = found.parts()
    assert list(parts) == ["L_T", "L_t", "L_0"]
    assert sum(part.bits_per_dim for part in parts.values()) == pytest.approx(found.estimate().bits_per_dim)
    exact = math.log2(1 / 8 * 32768 * math.sqrt(2 * math.pi * math.e))
    linear_chain = 0.62  # bits that a chain of 1000 steps of this schedule loses, by its closed form
    assert found.estimate().bits_per_dim == pytest.approx(exact + linear_chain, abs=0.15)
    assert 0 < found.estimate().monte_carlo_error < 0.1


def test_noise_is_keyed_by_the_clip(schedules, white):
    schedule, audio = schedules["linear"][0], (white.draw(4) / 8).float()
    mask, denoise = torch.ones(4, 1, 64, dtype=torch.bool), white.denoise(schedule)
    meters = (BoundMeter(num_levels=2), FlowMeter(tolerance=0.1))
    for meter in meters:
        keys = [("a", i) for i in range(4)]
        first, again = (meter(denoise, schedule, audio, mask, Waveform(), keys) for _ in range(2))
        other = meter(denoise, schedule, audio, mask, Waveform(), [("b", i) for i in range(4)])
        assert torch.equal(first.nats, again.nats)
        assert not torch.equal(first.nats, other.nats)
        assert not torch.equal(first.nats[:, 0], first.nats[:, 1])  # repeats have their own


def test_audio_off_the_16_bit_grid_is_rounded_to_it(schedules, white):
    schedule, mask = schedules["linear"][0], torch.ones(2, 1, 64, dtype=torch.bool)
    audio = ((white.draw(2) / 8) * 32768).round() / 32768
    off = audio + 0.3 / 32768
    on, moved = (bounds(white, schedule, a, mask, num_levels=2).nats for a in (audio, off))
    assert torch.equal(on, moved)


def test_joined_and_chosen_clips_are_the_clips(schedules, white):
    schedule, mask = schedules["linear"][0], torch.ones(3, 1, 64, dtype=torch.bool)
    found = bounds(white, schedule, white.draw(3) / 8, mask, num_levels=2)
    turned = ClipBounds.join([found[torch.tensor([2])], found[torch.tensor([0, 1])]])
    assert torch.equal(turned.nats, found.nats[[2, 0, 1]])
    assert torch.equal(turned.noise_error, found.noise_error[[2, 0, 1]])


def test_dimensions_are_samples_of_all_channels_without_padding():
    mask = torch.arange(10)[None, None] < torch.tensor([10, 3, 0])[:, None, None]
    assert count_dims(torch.zeros(3, 2, 10), mask).tolist() == [20, 6, 0]


def test_white_noise_has_the_entropy_of_its_level():
    audio = 0.1 * torch.randn(8, 1, 8192, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(8192).expand(8, 1, 8192) < 6000
    padded = torch.where(mask, audio, 0.0)
    exact = math.log2(0.1 * 32768 * math.sqrt(2 * math.pi * math.e))
    counts = value_counts(padded[:4], mask[:4]) + value_counts(padded[4:], mask[4:])
    assert counts.sum() == 8 * 6000
    assert white_gaussian(counts) == pytest.approx(exact, abs=0.01)
    silence = value_counts(torch.zeros(1, 1, 8), torch.ones(1, 1, 8, dtype=torch.bool))
    assert white_gaussian(silence) == pytest.approx(0)
    full_scale = value_counts(torch.tensor([[[-1.0, 1.0]]]), torch.ones(1, 1, 2, dtype=torch.bool))
    assert full_scale.nonzero().flatten().tolist() == [0, 65535]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoundMeter(num_levels=0), "num_levels: expected at least 1, got 0"),
        (lambda: BoundMeter(repeats=0), "repeats: expected at least 1, got 0"),
        (lambda: BoundMeter(t_min=0.1), "t_min: expected a time between 0 and 1, and continuous=true, got 0.1"),
        (lambda: FlowMeter(repeats=0), "repeats: expected at least 1, got 0"),
        (lambda: FlowMeter(tolerance=0.0), "tolerance: expected between 0 and 1, got 0.0"),
        (lambda: FlowMeter(t_min=1.5), "t_min: expected a time between 0 and 1, got 1.5"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
