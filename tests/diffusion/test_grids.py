"""Where the network is asked: falling, trained times, over the range that was asked for."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.grids import balanced, karras, log_snr, of_betas, trailing, uniform
from audio_diffusion.diffusion.schedule import Grid, Schedule
from audio_diffusion.diffusion.schedules import (
    Flow,
    Steps,
    VarianceExploding,
    cosine,
    explicit,
    input_scaled,
    linear,
    lowered,
    zero_terminal_snr,
)

GRIDS = pytest.mark.parametrize("grid", [trailing, uniform, log_snr, karras, balanced])
SCHEDULES = pytest.mark.parametrize(
    "schedule",
    [
        linear(),
        cosine(),
        lowered(linear()),
        zero_terminal_snr(linear()),
        linear(20, 1e-3, 0.5),
        VarianceExploding(),
        Flow(),
    ],
    ids=["linear", "cosine", "lowered", "zero_snr", "coarse", "edm", "flow"],
)


def steps(schedule: Steps) -> Tensor:
    """0, 1/T, .. 1."""
    return torch.tensor([i / schedule.num_steps for i in range(schedule.num_steps + 1)], dtype=torch.float64)


def decibels(schedule: Schedule, times: list[float]) -> list[float]:
    """Noise levels in dB of the data."""
    return [20 * math.log10(sigma / alpha) for alpha, sigma in map(schedule.at, times)]


@pytest.mark.slow
@GRIDS
@SCHEDULES
@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 18])
def test_times_fall_and_are_trained(grid: Grid, schedule: Schedule, num_steps: int) -> None:
    times = grid(schedule, num_steps)
    assert len(times) == num_steps
    assert all(a > b for a, b in pairwise(times))
    assert times[0] <= 1
    assert times[-1] >= schedule.first_time * (1 - 1e-9)
    if schedule.num_steps is not None:
        assert all(t == round(t * schedule.num_steps) / schedule.num_steps for t in times)


@GRIDS
def test_all_steps_are_the_chain(grid: Grid) -> None:
    schedule = linear(200, 1e-3, 0.1)
    assert grid(schedule, 200) == grid(schedule, None) == [i / 200 for i in range(200, 0, -1)]


@GRIDS
@pytest.mark.parametrize("schedule", [zero_terminal_snr(linear()), Flow()], ids=["zero_snr", "flow"])
def test_a_schedule_without_signal_at_the_end_is_begun_there(grid: Grid, schedule: Schedule) -> None:
    assert grid(schedule, 1) == [1.0]
    assert grid(schedule, 7)[0] == 1.0


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50, 333, 667, 999, 1000])
def test_trailing_is_even_down_to_zero(num_steps: int) -> None:
    """Lin et al. 2023, table 2: T, T - T/n, .. T/n."""
    times = trailing(linear(1000), num_steps)
    assert times[0] == 1
    even = [1 - i / num_steps for i in range(num_steps)]
    assert all(abs(t - e) <= 0.5001 / 1000 for t, e in zip(times, even, strict=True))


@pytest.mark.parametrize("num_steps", [2, 10, 999])
def test_uniform_is_even_down_to_the_first_step(num_steps: int) -> None:
    times = uniform(linear(1000), num_steps)
    assert (times[0], times[-1]) == (1, 0.001)
    assert max(abs(a - b - 0.999 / (num_steps - 1)) for a, b in pairwise(times)) <= 0.001


@pytest.mark.parametrize("num_steps", [1, 50, None])
def test_times_start_where_there_is_signal_left(num_steps: int | None) -> None:
    """The cosine schedule ends so near pure noise that x0 cannot be read there: sampling starts at alpha_t >= 0.005."""
    schedule = cosine(1000)
    times = trailing(schedule, num_steps)
    alpha, _ = schedule.alpha_sigma(steps(schedule))
    first = round(times[0] * 1000)
    assert alpha[first] >= 0.005 > alpha[first + 1]
    assert len(times) == (num_steps or first)
    assert 40 < decibels(schedule, karras(schedule, 9))[0] < 46.1  # alpha = 0.005 is 46 dB


@pytest.mark.parametrize("alphas", [[0.9, 1e-5], [0.9, 0.5, 0.3, 1e-6], [1e-6]])
def test_times_never_start_before_the_noise(alphas: list[float]) -> None:
    """With coarse steps the last grid point with signal may be mostly signal: a chain of noise cannot start there."""
    schedule = explicit(alphas)
    assert trailing(schedule, None) == [i / len(alphas) for i in range(len(alphas), 0, -1)]


def test_log_snr_is_even_in_decibels_over_the_whole_schedule() -> None:
    levels = decibels(VarianceExploding(1e-4, 100), log_snr(VarianceExploding(1e-4, 100), 7))
    assert levels == pytest.approx([40, 20, 0, -20, -40, -60, -80], abs=1e-6)


def test_karras_is_eq_5() -> None:
    """(σ_max^(1/ρ) + i/(n-1)·(σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ."""
    schedule = VarianceExploding(0.0001, 200)
    times = karras(schedule, 5, rho=7.0, sigma_min=0.002, sigma_max=80.0)
    expected = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    assert [schedule.at(t)[1] for t in times] == pytest.approx(expected, rel=1e-9)


def test_balanced_widens_with_the_steps_and_is_dense_in_the_middle() -> None:
    schedule = lowered(linear())
    reach = {n: decibels(schedule, balanced(schedule, n)) for n in (10, 20, 50)}
    assert [round(levels[0]) for levels in reach.values()] == pytest.approx([20, 38, 44], abs=1)
    assert [round(levels[-1]) for levels in reach.values()] == pytest.approx([-41, -67, -90], abs=1)
    gaps = [a - b for a, b in pairwise(reach[50])]
    middle = min(range(49), key=lambda i: abs((reach[50][i] + reach[50][i + 1]) / 2 + 11.2))
    assert gaps[middle] < 0.5 * gaps[0]
    assert gaps[middle] < 0.5 * gaps[-1]
    even = decibels(VarianceExploding(1e-4, 100), balanced(VarianceExploding(1e-4, 100), 50, share=0.0))
    assert max(abs((a - b) - (even[0] - even[-1]) / 49) for a, b in pairwise(even)) < 0.01


@GRIDS
@pytest.mark.parametrize(
    ("make", "num_steps", "largest"),
    [(linear, 0, 1000), (linear, -1, 1000), (linear, 1001, 1000), (cosine, 0, 996), (cosine, 997, 996)],
)
def test_more_steps_than_there_are_are_refused(
    grid: Grid, make: Callable[[], Steps], num_steps: int, largest: int
) -> None:
    message = f"num_steps: expected 1 to {largest} for this schedule of 1000, got {num_steps}"
    with pytest.raises(ValueError, match=message):
        grid(make(), num_steps)


@GRIDS
@pytest.mark.parametrize("num_steps", [0, None])
def test_continuous_time_needs_a_number_of_steps(grid: Grid, num_steps: int | None) -> None:
    with pytest.raises(ValueError, match="num_steps: expected at least 1 for a schedule of continuous time"):
        grid(Flow(), num_steps)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (partial(karras, rho=0.0), "rho: expected a positive number"),
        (partial(karras, sigma_min=0.002), "sigma_min: expected 0.01 <= sigma_min < sigma_max"),
        (partial(karras, sigma_max=1000.0), "the levels of this schedule"),
        (partial(balanced, share=1.0), "share: expected 0 <= share < 1"),
        (partial(balanced, width_db=0.0), "share: expected 0 <= share < 1 and width_db > 0"),
    ],
)
def test_bad_options_are_refused(grid: Grid, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(linear(), 10)


def test_the_levels_of_given_betas_are_those_of_their_own_chain() -> None:
    betas = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]
    own = explicit([1 - beta for beta in betas])
    for schedule in (linear(1000), VarianceExploding()):  # fine enough, or continuous
        times = of_betas(schedule, None, betas)
        expected = decibels(own, [i / 6 for i in range(6, 0, -1)])
        assert decibels(schedule, times) == pytest.approx(expected, abs=0.3 if isinstance(schedule, Steps) else 1e-3)
    coarse = of_betas(linear(50, 1e-4, 0.05), 6, betas)
    assert [round(50 * t) for t in coarse] == [44, 24, 11, 5, 2, 1]
    assert of_betas(input_scaled(linear(50, 1e-4, 0.05), 0.1), 6, betas) == coarse


@pytest.mark.parametrize(
    ("num_steps", "betas", "message"),
    [
        (5, [0.1, 0.2], "num_steps: expected 2, the number of betas, or null, got 5"),
        (None, [], r"betas: expected numbers inside \(0, 1\), got \[\]"),
        (None, [0.1, 1.0], r"betas: expected numbers inside \(0, 1\), got \[0.1, 1.0\]"),
    ],
)
def test_betas_that_do_not_fit_are_refused(num_steps: int | None, betas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_betas(linear(), num_steps, betas)
