"""The schedules against their papers' formulas, and the interpolation between the steps."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import (
    Flow,
    Steps,
    VarianceExploding,
    cosine,
    explicit,
    input_scaled,
    linear,
    lowered,
    scaled_linear,
    sigmoid,
    zero_terminal_snr,
)

ALL = pytest.mark.parametrize(
    "make",
    [
        linear,
        scaled_linear,
        cosine,
        sigmoid,
        lambda: linear(50, 1e-3, 0.3),
        lambda: explicit([0.9, 0.8, 0.7]),
        lambda: lowered(linear()),
        lambda: zero_terminal_snr(linear(100, 1e-3, 0.1)),
    ],
    ids=["linear", "scaled_linear", "cosine", "sigmoid", "coarse", "explicit", "lowered", "zero_snr"],
)
Make = Callable[[], Steps]


def grid(schedule: Steps, dtype: torch.dtype = torch.float64) -> Tensor:
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
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-6 * max(1.0, -exact.log().min().item()), atol=1e-38)


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


@pytest.mark.parametrize("alphas", [[0.9, 1.0], [0.0, 0.9], [0.9, 1.1], [0.9, -0.1], [0.9, math.nan]])
def test_a_beta_outside_zero_to_one_is_refused(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"betas: expected every β inside \(0, 1\), the last at most 1, got"):
        explicit(alphas)


@pytest.mark.parametrize("make", [lambda: explicit([]), lambda: linear(0), lambda: cosine(0)])
def test_a_schedule_needs_a_step(make: Make) -> None:
    with pytest.raises(ValueError, match="betas: expected at least one step, got none"):
        make()


# What was not in DDPM


@pytest.mark.parametrize("num_steps", [1000, 250])
def test_scaled_linear_is_linear_in_the_root(num_steps: int) -> None:
    schedule = scaled_linear(num_steps, 0.00085, 0.012)
    bars = schedule.alpha_bar(grid(schedule))
    roots = (1 - bars[1:] / bars[:-1]).sqrt()
    torch.testing.assert_close(
        roots, torch.linspace(0.00085**0.5, 0.012**0.5, num_steps).double(), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(("start", "end", "temperature"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7)])
def test_sigmoid_follows_the_formula(start: float, end: float, temperature: float) -> None:
    schedule = sigmoid(1000, start, end, temperature)

    def squash(v: float) -> float:
        return 1 / (1 + math.exp(-v / temperature))

    for i in (1, 10, 500, 900):  # algorithm 1 of Jabri et al., where no β is clipped
        at = squash(i / 1000 * (end - start) + start)
        expected = (squash(end) - at) / (squash(end) - squash(start))
        assert schedule.alpha_bar(torch.tensor(i / 1000).double()).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="start: expected start < end"):
        sigmoid(10, 3.0, -3.0)


@ALL
def test_time_of_log_snr_is_the_inverse(make: Make) -> None:
    schedule = make()
    t = torch.cat([grid(schedule)[1:-1], torch.linspace(schedule.first_time, 0.99, 777, dtype=torch.float64)])
    torch.testing.assert_close(schedule.time_of_log_snr(schedule.log_snr(t)), t, rtol=0, atol=1e-7)


@pytest.mark.parametrize("schedule", [VarianceExploding(0.002, 80), Flow()], ids=["edm", "flow"])
def test_continuous_schedules_are_consistent(schedule: Schedule) -> None:
    t = torch.linspace(schedule.first_time, 0.999, 333, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(schedule.log_snr(t), (alpha**2 / sigma**2).log())
    torch.testing.assert_close(schedule.time_of_log_snr(schedule.log_snr(t)), t)
    assert (sigma.diff() > 0).all()
    assert schedule.at(0.5) == pytest.approx(tuple(v.item() for v in schedule.alpha_sigma(torch.tensor(0.5).double())))


def test_edm_and_flow_are_what_they_are_called() -> None:
    alpha, sigma = VarianceExploding(0.002, 80).alpha_sigma(torch.tensor([0.0, 0.5, 1.0]).double())
    assert alpha.tolist() == [1, 1, 1]
    torch.testing.assert_close(sigma, torch.tensor([0.002, (0.002 * 80) ** 0.5, 80]).double())
    alpha, sigma = Flow().alpha_sigma(torch.tensor([0.0, 0.25, 1.0]))
    assert (alpha.tolist(), sigma.tolist()) == ([1, 0.75, 0], [0, 0.25, 1])
    for make in (lambda: VarianceExploding(0.1, 0.01), lambda: VarianceExploding(0.0)):
        with pytest.raises(ValueError, match="sigma_min: expected 0 < sigma_min < sigma_max"):
            make()
    with pytest.raises(ValueError, match="floor_db: expected a negative number"):
        Flow(3.0)


@pytest.mark.parametrize("base", [linear(), cosine(), scaled_linear()], ids=["linear", "cosine", "scaled_linear"])
def test_lowered_reaches_its_floor_and_keeps_the_rest(base: Steps) -> None:
    schedule = lowered(base, floor_db=-90, prepended_steps=100)
    levels = schedule.log_snr(grid(schedule)[1:]) * 10 / math.log(10)
    assert levels[0].item() == pytest.approx(90)
    assert (levels.diff() < 0).all()
    assert levels[:100].diff().diff().abs().max() < 1e-6  # even
    kept = base.alpha_bar(grid(base))[-900:]
    torch.testing.assert_close(schedule.alpha_bar(grid(schedule))[-900:], kept)
    assert levels.diff()[:102].abs().max() < 1.0  # dB: nowhere coarse where the two meet


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor_db": -30.0}, "floor_db: expected less than the -40.0 dB"),
        ({"prepended_steps": 0}, "prepended_steps: expected at least 1"),
    ],
)
def test_lowered_refuses_what_it_cannot_do(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lowered(linear(), **options)


def test_zero_terminal_snr_is_algorithm_1() -> None:
    """Lin et al. 2023: √ᾱ is shifted so that the last is 0, and scaled so that the first is as it was."""
    base = linear()
    roots, schedule = base.alpha_bar(grid(base)).sqrt(), zero_terminal_snr(base)
    expected = (roots - roots[-1]) * roots[1] / (roots[1] - roots[-1])
    torch.testing.assert_close(schedule.alpha_sigma(grid(schedule))[0][1:], expected[1:], rtol=1e-6, atol=1e-9)
    assert schedule.final_alpha == 0
    assert base.final_alpha == pytest.approx(0.006353, abs=1e-6)
    assert schedule.alpha_sigma(torch.ones(1))[1].item() == 1
    assert torch.isfinite(schedule.log_snr(grid(schedule)[1:])).all()


@pytest.mark.parametrize("base", [linear(50, 1e-4, 0.05), lowered(cosine())], ids=["DiffWave's", "lowered cosine"])
def test_input_scaled_changes_the_signal_alone(base: Steps) -> None:
    schedule, t = input_scaled(base, 0.1), torch.linspace(0, 1, 333, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha, 0.1 * base.alpha_sigma(t)[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(sigma, base.alpha_sigma(t)[1], rtol=1e-9, atol=0)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(log_snr[1:], (alpha[1:] ** 2 / sigma[1:] ** 2).log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.time_of_log_snr(log_snr), t, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.alpha_bar(t), alpha**2)
    assert (schedule.kind, schedule.num_steps) == ("input scaled", base.num_steps)


def test_input_scaled_twice_multiplies_and_by_one_is_the_schedule() -> None:
    assert input_scaled(input_scaled(linear(), 0.5), 0.4).input_scale == pytest.approx(0.2)
    assert input_scaled(linear(), 1).kind == "variance preserving"


def test_a_scaled_schedule_is_lowered_in_db_of_its_data_and_ended_without_signal() -> None:
    faint = input_scaled(linear(), 0.1)  # starts at -20 dB of noise
    schedule = lowered(faint, -60.0)
    assert schedule.log_snr(torch.tensor(schedule.first_time)).item() == pytest.approx(6 * math.log(10), rel=1e-4)
    torch.testing.assert_close(schedule.alpha_sigma(grid(schedule)[-900:])[0], faint.alpha_sigma(grid(faint)[-900:])[0])
    with pytest.raises(ValueError, match=r"floor_db: expected less than the -20\.0 dB it starts at, got -15"):
        lowered(faint, -15.0)
    ended = zero_terminal_snr(faint)
    assert (ended.final_alpha, ended.input_scale) == (0, 0.1)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_input_scale_is_positive(scale: float) -> None:
    with pytest.raises(ValueError, match=f"input_scale: expected a positive number, got {scale}"):
        input_scaled(linear(), scale)
