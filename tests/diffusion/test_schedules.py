"""The schedules against their papers' formulas, and the interpolation between the steps."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.schedules import Schedule, cosine, explicit, linear

ALL = pytest.mark.parametrize(
    "make", [linear, cosine, lambda: linear(50, 1e-3, 0.3), lambda: explicit([0.9, 0.8, 0.7])]
)
Make = Callable[[], Schedule]


def grid(schedule: Schedule, dtype: torch.dtype = torch.float64) -> Tensor:
    """0, 1/T, .. 1."""
    return torch.tensor([i / schedule.num_steps for i in range(schedule.num_steps + 1)], dtype=dtype)


def test_linear_is_the_product_of_its_steps() -> None:
    schedule = linear(1000, 1e-4, 0.02)
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    expected = torch.tensor([math.prod(1 - beta for beta in betas[:n]) for n in range(1001)], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha_bar(grid(schedule)), expected, rtol=1e-10, atol=0)
    assert betas[-1] == pytest.approx(0.02)


def test_linear_ends_where_ddpm_does() -> None:
    # sqrt(alpha_bar_T) of DDPM's schedule, as in Lin et al. 2023 (arXiv:2305.08891): not quite pure noise
    alpha, _ = linear().alpha_sigma(torch.ones(1))
    assert alpha.item() == pytest.approx(0.006353, abs=1e-6)


@pytest.mark.parametrize(("num_steps", "offset"), [(1000, 0.008), (100, 0.02)])
def test_cosine_follows_the_formula_until_beta_is_clipped(num_steps: int, offset: float) -> None:
    schedule = cosine(num_steps, offset, max_beta=0.9)

    def f(t: float) -> float:
        return math.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2

    expected = [1.0]
    for i in range(1, num_steps + 1):
        formula = f(i / num_steps) / f(0)
        beta = 1 - formula / (f((i - 1) / num_steps) / f(0))
        expected.append(formula if beta < 0.9 else expected[-1] * (1 - 0.9))
    assert formula < 1e-9 < expected[-1]  # the clip is what keeps some signal at t = 1
    torch.testing.assert_close(
        schedule.alpha_bar(grid(schedule)), torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0
    )


def test_cosine_clips_at_the_papers_value() -> None:
    alpha_bar = cosine(1000).alpha_bar(grid(cosine(1000)))
    assert (alpha_bar[-1] / alpha_bar[-2]).item() == pytest.approx(1 - 0.999)


def test_explicit_takes_the_alpha_of_each_step() -> None:
    schedule = explicit([0.9, 0.8, 0.7])
    expected = torch.tensor([1, 0.9, 0.72, 0.504], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha_bar(grid(schedule)), expected, rtol=1e-12, atol=0)
    assert schedule.num_steps == 3


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variance_is_preserved(make: Make, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 777, dtype=dtype).reshape(7, 111)
    alpha, sigma = make().alpha_sigma(t)
    assert alpha.shape == sigma.shape == t.shape
    assert alpha.dtype == sigma.dtype == dtype
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close(alpha**2, make().alpha_bar(t))


@ALL
def test_clean_at_zero(make: Make) -> None:
    alpha, sigma = make().alpha_sigma(torch.zeros(1))
    assert (alpha.item(), sigma.item()) == (1, 0)
    assert make().log_snr(torch.zeros(1)).item() == math.inf


@ALL
def test_small_sigma_keeps_its_digits_in_float32(make: Make) -> None:
    """1 - ᾱ would lose them: at β = 1e-4 float32 has three left."""
    first = grid(make())[1:2]
    exact = (1 - make().alpha_bar(first)).sqrt()
    torch.testing.assert_close(make().alpha_sigma(first.float())[1].double(), exact, rtol=1e-6, atol=0)


@ALL
def test_log_snr_is_of_alpha_and_sigma(make: Make) -> None:
    t = torch.linspace(0, 1, 333, dtype=torch.float64)[1:]
    alpha, sigma = make().alpha_sigma(t)
    torch.testing.assert_close(make().log_snr(t), (alpha**2 / sigma**2).log(), rtol=1e-9, atol=1e-9)


@ALL
def test_float32_times_on_the_grid_hit_the_table(make: Make) -> None:
    """A step belongs to one side of a grid point only: rounding of i/T must not fall on the other side of it."""
    exact = make().alpha_bar(grid(make()))
    rounded = make().alpha_bar(grid(make(), torch.float32))
    assert torch.equal(rounded, torch.exp(-(-exact.log()).float()))


def test_time_outside_zero_to_one_is_its_nearest_end() -> None:
    schedule = linear()
    assert torch.equal(schedule.alpha_bar(torch.tensor([-0.5, 1.5])), schedule.alpha_bar(torch.tensor([0.0, 1.0])))


@ALL
def test_interpolation_falls_between_its_neighbours(make: Make) -> None:
    t = torch.linspace(0, 1, 20_011, dtype=torch.float64)
    alpha_bar = make().alpha_bar(t)
    assert (alpha_bar.diff() <= 0).all()
    on_grid = make().alpha_bar(grid(make()))
    assert (on_grid.diff() < 0).all()
    cell = (t * make().num_steps).floor().long().clamp(max=make().num_steps - 1)
    assert ((alpha_bar <= on_grid[cell] + 1e-12) & (alpha_bar >= on_grid[cell + 1] - 1e-12)).all()


def test_between_steps_beta_is_spread_evenly() -> None:
    """Half a step twice is a step: ᾱ at the middle is the geometric mean of its neighbours'."""
    schedule = explicit([0.9, 0.5])
    middle = schedule.alpha_bar(torch.tensor([0.25, 0.75], dtype=torch.float64))
    expected = torch.tensor([0.9**0.5, 0.9 * 0.5**0.5], dtype=torch.float64)
    torch.testing.assert_close(middle, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50, 333, 667, 999, 1000])
def test_times_fall_from_one_to_zero_on_the_grid(num_steps: int) -> None:
    schedule = linear(1000)
    times = schedule.times(num_steps)
    assert len(times) == num_steps + 1
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert all(a > b for a, b in pairwise(times))
    on_grid = set(grid(schedule).tolist())
    even = [1 - i / num_steps for i in range(num_steps + 1)]
    assert all(t in on_grid and abs(t - e) <= 0.5001 / 1000 for t, e in zip(times, even, strict=True))


def test_all_times_are_the_grid() -> None:
    assert linear(1000).times(None) == linear(1000).times(1000) == grid(linear(1000)).flip(0).tolist()


@pytest.mark.parametrize("num_steps", [1, 50, None])
def test_times_start_where_there_is_signal_left(num_steps: int | None) -> None:
    """The cosine schedule ends so near pure noise that x0 cannot be read there: sampling starts at alpha_t >= 0.005."""
    schedule = cosine(1000)
    times = schedule.times(num_steps)
    alpha, _ = schedule.alpha_sigma(grid(schedule))
    first = round(times[0] * 1000)
    assert alpha[first] >= 0.005 > alpha[first + 1]
    assert times[-1] == 0
    assert len(times) == 1 + (num_steps or first)


@pytest.mark.parametrize("alphas", [[0.9, 1e-5], [0.9, 0.5, 0.3, 1e-6], [1e-6]])
def test_times_never_start_before_the_noise(alphas: list[float]) -> None:
    """With coarse steps the last grid point with signal may be mostly signal: a chain of noise cannot start there."""
    schedule = explicit(alphas)
    assert schedule.times(None) == grid(schedule).flip(0).tolist()


@pytest.mark.parametrize(
    ("make", "num_steps", "largest"),
    [(linear, 0, 1000), (linear, -1, 1000), (linear, 1001, 1000), (cosine, 0, 996), (cosine, 997, 996)],
)
def test_times_refuse_more_steps_than_there_are(make: Make, num_steps: int, largest: int) -> None:
    message = f"num_steps: expected 1 to {largest} for this schedule of 1000, got {num_steps}"
    with pytest.raises(ValueError, match=message):
        make().times(num_steps)


@pytest.mark.parametrize("alphas", [[0.9, 1.0], [0.9, 0.0], [0.9, 1.1], [0.9, -0.1], [0.9, math.nan]])
def test_a_beta_outside_zero_to_one_is_refused(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"betas: expected every β inside \(0, 1\), got"):
        explicit(alphas)


@pytest.mark.parametrize("make", [lambda: explicit([]), lambda: linear(0), lambda: cosine(0)])
def test_a_schedule_needs_a_step(make: Make) -> None:
    with pytest.raises(ValueError, match="betas: expected at least one step, got none"):
        make()
