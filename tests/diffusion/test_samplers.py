"""The samplers on data whose exact denoiser is known, and against DDPM's and DDIM's formulas."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion import grids
from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Diffusion
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
)
from audio_diffusion.diffusion.schedules import zero_terminal_snr as zero
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc

Sampler = Callable[..., Tensor]
Exact = Callable[..., Denoiser]

TRAILING = {"grid": grids.trailing}
EVERY = pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(partial(ddpm, variance="beta", **TRAILING), id="ddpm-beta"),
        pytest.param(partial(ddpm, variance="beta_tilde", **TRAILING), id="ddpm-beta_tilde"),
        pytest.param(partial(ddim, eta=0.0, **TRAILING), id="ddim"),
        pytest.param(partial(ddim, eta=0.5, **TRAILING), id="ddim-eta0.5"),
        pytest.param(partial(ddim, eta=1.0, **TRAILING), id="ddim-eta1"),
    ],
)
ALL = pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(partial(ddpm, variance="beta", **TRAILING), id="ddpm-beta"),
        pytest.param(partial(ddpm, variance="beta_tilde", **TRAILING), id="ddpm-beta_tilde"),
        pytest.param(partial(ddim, **TRAILING), id="ddim"),
        pytest.param(partial(ddim, eta=1.0, **TRAILING), id="ddim-eta1"),
        pytest.param(partial(dpmpp, order=2, **TRAILING), id="dpmpp-2m"),
        pytest.param(partial(dpmpp, order=3, **TRAILING), id="dpmpp-3m"),
        pytest.param(partial(dpmpp, order=2, eta=1.0, **TRAILING), id="dpmpp-2m-sde"),
        pytest.param(partial(dpmpp, order=3, eta=1.0, **TRAILING), id="dpmpp-3m-sde"),
        pytest.param(partial(unipc, **TRAILING), id="unipc"),
        pytest.param(partial(heun, **TRAILING), id="heun"),
    ],
)
SCHEDULES = pytest.mark.parametrize("schedule", [linear(), cosine()], ids=["linear", "cosine"])


class Draws:
    """Standard normal float64 noise from a seed; counts how often it was asked for."""

    def __init__(self, *shape: int, seed: int = 0):
        self.shape, self.count, self.generator = shape, 0, torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        self.count += 1
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)


def no_noise() -> Tensor:
    raise AssertionError("noise was drawn")


def nonlinear(schedule: Schedule) -> Denoiser:
    """A denoiser with no structure that a wrong coefficient could hide behind."""
    net = lambda x_t, t, cond: torch.tanh(2 * x_t) + 0.3 * t[:, None, None] + 0.1  # noqa: E731
    return Diffusion(schedule, Epsilon()).denoiser(net, {})


# The right distribution


def mean_and_variance(sampler: Sampler, denoise: Denoiser, schedule: Schedule, width: int) -> tuple[Tensor, Tensor]:
    """Exact mean and variance of what a sampler draws where each step is affine, as it is for Gaussian data.

    x0 is then a constant plus a weighted sum of x_T and of every noise. Each weight is read off a sample of its own,
    in which that one noise is 1 and the others are 0.
    """
    units = iter(torch.eye(schedule.num_steps + 1, dtype=torch.float64)[:, 1:, None, None].expand(-1, -1, 1, width))
    constant_first = lambda: torch.cat([torch.zeros(1, 1, width, dtype=torch.float64), next(units)])  # noqa: E731
    next(units)
    x0 = sampler(denoise, constant_first(), schedule, constant_first, num_steps=None)
    return x0[0, 0], (x0[1:] - x0[0]).square().sum((0, 1))


@ALL
@SCHEDULES
def test_gaussian_data_comes_out_with_its_mean_and_std(
    sampler: Sampler, schedule: Schedule, exact_denoise: Exact
) -> None:
    mean = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    std = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    got_mean, got_variance = mean_and_variance(sampler, exact_denoise(schedule, mean, std), schedule, width=3)
    torch.testing.assert_close(got_mean, mean, rtol=0, atol=0.01)
    torch.testing.assert_close(got_variance.sqrt(), std, rtol=0.02, atol=0)


@pytest.mark.parametrize("num_steps", [3, 10])
def test_beta_is_exact_for_data_of_unit_variance(num_steps: int, exact_denoise: Exact) -> None:
    """However few the steps (DDPM, section 3.2), but for the β_1 that the last step leaves out."""
    schedule = linear(num_steps, 0.1, 0.6)

    def variance(name: str) -> float:
        sampler = partial(ddpm, variance=name)
        return mean_and_variance(sampler, exact_denoise(schedule, 0.0, 1.0), schedule, width=1)[1].item()

    assert variance("beta") == pytest.approx(1 - 0.1, abs=1e-6)
    assert variance("beta_tilde") < 0.85


@ALL
def test_samples_of_gaussian_data(sampler: Sampler, exact_denoise: Exact) -> None:
    """The same with real noise and many samples: the mean and std of each dimension, and none correlated."""
    schedule, draws = linear(), Draws(4000, 1, 3)
    mean = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    std = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    x0 = sampler(exact_denoise(schedule, mean, std), draws(), schedule, draws, num_steps=300)[:, 0]
    assert ((x0.mean(0) - mean).abs() / std).max() < 4 / 4000**0.5 + 0.01
    assert (x0.std(0) / std - 1).abs().max() < 4 / 8000**0.5 + 0.03
    assert (torch.corrcoef(x0.T) - torch.eye(3)).abs().max() < 5 / 4000**0.5


@ALL
def test_mixture_comes_out_with_its_weights(sampler: Sampler, exact_mixture: Exact) -> None:
    """30 % at -1 and 70 % at 2: the posterior is not Gaussian here, and the denoiser not linear."""
    schedule, draws, std = cosine(), Draws(4000, 1, 1), 0.3
    denoise = exact_mixture(schedule, [0.3, 0.7], [-1.0, 2.0], [std, std])
    x0 = sampler(denoise, draws(), schedule, draws, num_steps=250).flatten()
    upper = x0 > 0.5
    assert upper.double().mean().item() == pytest.approx(0.7, abs=4 * (0.21 / 4000) ** 0.5)
    for part, centre in ((x0[~upper], -1.0), (x0[upper], 2.0)):
        assert part.mean().item() == pytest.approx(centre, abs=0.05)
        assert part.std().item() == pytest.approx(std, rel=0.1)


# How fast it gets there


CONTINUOUS = pytest.mark.parametrize(
    "schedule", [VarianceExploding(0.05, 20.0), Flow(floor_db=-26.0)], ids=["edm", "flow"]
)
ORDERS = pytest.mark.parametrize(
    ("sampler", "order"),
    [
        pytest.param(ddim, 1, id="ddim"),
        pytest.param(heun, 2, id="heun"),
        pytest.param(partial(dpmpp, order=2), 2, id="dpmpp-2m"),
        pytest.param(partial(dpmpp, order=3), 3, id="dpmpp-3m"),
        pytest.param(partial(unipc, order=1), 2, id="unipc-1"),
        pytest.param(partial(unipc, order=2), 3, id="unipc-2"),
        pytest.param(partial(unipc, order=3), 4, id="unipc-3"),
    ],
)


def level_grid(schedule: Schedule, num_steps: int | None) -> list[float]:
    """Even in log-SNR from 20 to 0.05: sigma/alpha, where all of both test densities is decided."""
    assert num_steps is not None
    return schedule.time_of_log_snr(torch.linspace(-5.99, 5.99, num_steps, dtype=torch.float64)).tolist()


def measured_order(sampler: Sampler, denoise: Denoiser, schedule: Schedule, exact: Tensor, x: Tensor) -> float:
    """Slope of log error against log steps."""
    steps = [40, 80, 160]
    ends = [sampler(denoise, x, schedule, no_noise, num_steps=n, grid=level_grid) for n in steps]
    errors = torch.stack([(end - exact).square().mean().sqrt() for end in ends])
    return (-(errors[2] / errors[0]).log() / math.log(4)).item()


@ORDERS
@CONTINUOUS
def test_gaussian_data_is_reached_at_the_stated_order(
    sampler: Sampler, order: int, schedule: Schedule, exact_denoise: Exact
) -> None:
    mean, std = 0.4, 0.5
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 9)
    denoise = exact_denoise(schedule, mean, std)
    first, last = (schedule.at(t) for t in (level_grid(schedule, 2)))
    normed = (x * math.hypot(*first) - first[0] * mean) / math.hypot(first[0] * std, first[1])
    exact = mean + last[0] * std**2 / math.hypot(last[0] * std, last[1]) * normed
    assert measured_order(sampler, denoise, schedule, exact, x) > order - 0.35


@ORDERS
@CONTINUOUS
def test_a_mixture_is_reached_at_the_stated_order(
    sampler: Sampler, order: int, schedule: Schedule, exact_mixture: Exact
) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 9)
    denoise = exact_mixture(schedule, [0.3, 0.7], [-1.0, 0.6], [0.5, 0.4])
    exact = unipc(denoise, x, schedule, no_noise, num_steps=1200, order=3, grid=level_grid)
    assert measured_order(sampler, denoise, schedule, exact, x) > order - 0.5


@SCHEDULES
def test_ddim_converges_at_first_order_on_a_chain(schedule: Steps, exact_denoise: Exact) -> None:
    mean, std = 0.4, 0.5
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 9)
    alpha, sigma = schedule.at(grids.trailing(schedule, 1)[0])
    exact = mean + std * (x_t - alpha * mean) / math.hypot(alpha * std, sigma)
    denoise, steps = exact_denoise(schedule, mean, std), [25, 50, 100, 200, 500]
    ends = torch.stack([ddim(denoise, x_t, schedule, no_noise, num_steps=n, grid=grids.trailing) for n in steps])
    errors = (ends - exact).abs().amax((1, 2, 3))
    order = -errors.log().diff() / torch.tensor(steps).double().log().diff()
    assert ((order > 0.9) & (order < 1.1)).all(), order
    assert errors[-1] < 0.01


# What the defaults promise


@pytest.mark.parametrize(("num_steps", "floor_db"), [(20, -60), (50, -80)])
def test_quiet_components_keep_their_level(num_steps: int, floor_db: int, exact_denoise: Exact) -> None:
    """Within 1 dB, from +20 dB down: with DDPM's own schedule it is 20 dB too much at -60 dB, whatever the solver."""
    level = torch.arange(floor_db, 20.1, 2.5, dtype=torch.float64)
    schedule = lowered(linear())
    denoise = exact_denoise(schedule, 0.0, 10 ** (level.float() / 20))
    got = unipc(denoise, torch.ones(1, 1, len(level)), schedule, no_noise, num_steps=num_steps)
    assert got.dtype == torch.float32
    assert (20 * got[0, 0].double().abs().log10() - level).abs().max() < 1


@pytest.mark.parametrize(("num_steps", "most"), [(5, 0.25), (10, 0.08), (20, 0.0084), (50, 0.0010), (100, 0.0003)])
def test_default_sampler_needs_few_steps_for_a_mixture(num_steps: int, most: float, exact_mixture: Exact) -> None:
    """Wasserstein-2 distance to three modes of total variance 1, along exact quantiles."""
    weight, mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [-0.9, 0.4, 1.65], [0.25] * 3))
    mean = mean - (weight * mean).sum()
    scale = (weight * (mean**2 + std**2)).sum().sqrt()
    mean, std = mean / scale, std / scale
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    schedule = lowered(linear())
    denoise = exact_mixture(schedule, weight.tolist(), mean.tolist(), std.tolist())
    got = unipc(denoise, torch.special.ndtri(u)[None, None], schedule, no_noise, num_steps=num_steps)[0, 0]
    cdf = torch.special.ndtr((got[:, None] - mean) / std) @ weight
    density = (torch.exp(-0.5 * ((got[:, None] - mean) / std) ** 2) / std / (2 * math.pi) ** 0.5) @ weight
    if num_steps >= 20:  # near the quantile the distance to it is the excess of the distribution function by its slope
        assert ((cdf - u) / density).square().mean().sqrt() < most
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    table = torch.special.ndtr((grid[:, None] - mean) / std) @ weight
    exact = grid[torch.searchsorted(table, u)]
    assert (got.sort().values - exact).square().mean().sqrt() < most


@ALL
@pytest.mark.parametrize(
    "schedule",
    [zero(linear()), Flow(), VarianceExploding(), lowered(cosine())],
    ids=["zero-snr", "flow", "edm", "cosine"],
)
def test_every_solver_works_on_every_process(sampler: Sampler, schedule: Schedule, exact_denoise: Exact) -> None:
    draws = Draws(2000, 1, 2)
    mean, std = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.5, 0.2], dtype=torch.float64)
    grid = grids.balanced if schedule.kind == "variance exploding" else grids.trailing
    x0 = sampler(exact_denoise(schedule, mean, std), draws(), schedule, draws, num_steps=300, grid=grid)[:, 0]
    assert ((x0.mean(0) - mean).abs() / std).max() < 0.12
    assert (x0.std(0) / std - 1).abs().max() < 0.12


# The formulas of the papers


def test_ddpm_is_algorithm_2() -> None:
    """x_{t-1} = (x_t - β_t/√(1-ᾱ_t)·ε_θ)/√α_t + √β_t·z, z = 0 at the last step, as DDPM writes it."""
    alphas, draws, again = [0.9, 0.8, 0.7], Draws(4, 1, 3), Draws(4, 1, 3)
    schedule = explicit(alphas)
    denoise = nonlinear(schedule)
    got = ddpm(denoise, draws(), schedule, draws, num_steps=3)
    x = again()
    for i, bar in ((3, 0.504), (2, 0.72), (1, 0.9)):
        alpha = alphas[i - 1]
        noise = denoise(x, i / 3).noise
        x = (x - (1 - alpha) / (1 - bar) ** 0.5 * noise) / alpha**0.5
        if i > 1:
            x = x + (1 - alpha) ** 0.5 * again()
    torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_ddpm_step_is_the_posterior(variance: str) -> None:
    """Eq. 7 is Bayes' rule: N(x_s; √ᾱ_s·x0, 1-ᾱ_s) times N(x_t; √α·x_s, β), here by adding precisions."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
    schedule, seen, clean = linear(), [], 0.6
    denoise = lambda x_t, t: (seen.append(x_t.clone()), Prediction(torch.full_like(x_t, clean), x_t))[1]  # noqa: E731
    draws, again = Draws(2, 1, 3), Draws(2, 1, 3)
    ddpm(denoise, draws(), schedule, draws, num_steps=1000, variance=variance)
    assert torch.equal(seen[0], again())
    for index in range(1000, 1, -1):  # x at each index is the posterior's draw given x at the index above
        x_t, x_s, beta, bar_s = seen[1000 - index], seen[1001 - index], betas[index - 1], bars[index - 1]
        precision = 1 / (1 - bar_s) + (1 - beta) / beta
        mean = (bar_s.sqrt() * clean / (1 - bar_s) + (1 - beta).sqrt() * x_t / beta) / precision
        std = beta.sqrt() if variance == "beta" else precision**-0.5
        torch.testing.assert_close(x_s, mean + std * again(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 10, None])
@SCHEDULES
def test_ddim_at_eta_one_is_ddpm_with_beta_tilde(schedule: Schedule, num_steps: int | None) -> None:
    draws, again, denoise = Draws(2, 1, 5), Draws(2, 1, 5), nonlinear(schedule)
    one = ddim(denoise, draws(), schedule, draws, num_steps=num_steps, eta=1.0)
    other = ddpm(denoise, again(), schedule, again, num_steps=num_steps, variance="beta_tilde")
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert draws.count == again.count


def test_ddim_walks_along_the_noise_it_is_told() -> None:
    """Told the true x0 and noise, it visits x_s = alpha_s·x0 + sigma_s·noise at every time (eq. 12, eta = 0)."""
    schedule, draws, seen = cosine(), Draws(2, 1, 3), []
    x0, noise = draws(), draws()
    process = Diffusion(schedule, Epsilon())

    def denoise(x_t: Tensor, t: float) -> Prediction:
        torch.testing.assert_close(x_t, process.add_noise(x0, noise, torch.full((2,), t)), rtol=1e-5, atol=1e-6)
        seen.append(t)
        return Prediction(x0, noise)

    start = process.add_noise(x0, noise, torch.full((2,), grids.trailing(schedule, 20)[0]))
    end = ddim(denoise, start, schedule, no_noise, num_steps=20, grid=grids.trailing)
    assert seen == grids.trailing(schedule, 20)
    torch.testing.assert_close(end, x0)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_ddim_noise_and_direction_share_the_variance(eta: float) -> None:
    """Eq. 12 and 16: √(1-ᾱ_s-σ²) along the noise, σ = eta·√((1-ᾱ_s)/(1-ᾱ_t)·(1-ᾱ_t/ᾱ_s)) fresh."""
    schedule, one, nothing = explicit([0.9, 0.8, 0.7]), torch.ones(1, 1, 1).double(), torch.zeros(1, 1, 1).double()
    seen: list[Tensor] = []

    def denoise(x_t: Tensor, t: float) -> Prediction:
        seen.append(x_t.clone())
        return Prediction(nothing, x_t / schedule.at(t)[1])

    for draw in (nothing, one):
        ddim(denoise, one * (1 - 0.504) ** 0.5, schedule, lambda draw=draw: draw, num_steps=3, eta=eta)
    along, both = seen[1].item(), seen[4].item()  # at ᾱ_s = 0.72, from ᾱ_t = 0.504
    sigma = eta * ((1 - 0.72) / (1 - 0.504) * (1 - 0.7)) ** 0.5
    assert both - along == pytest.approx(sigma)
    assert along == pytest.approx((1 - 0.72 - sigma**2) ** 0.5)


# Fewer steps than T, and what is drawn and told


@EVERY
@pytest.mark.parametrize("num_steps", [2, 10, 77])
def test_fewer_steps_are_the_schedule_of_the_visited_times(
    sampler: Sampler, num_steps: int, exact_denoise: Exact
) -> None:
    """Every step of the schedule whose α is ᾱ_t/ᾱ_s of the times visited does the same."""
    full = linear()
    bars = full.alpha_bar(torch.tensor([*grids.trailing(full, num_steps), 0.0], dtype=torch.float64)).tolist()
    short = explicit([t / s for t, s in pairwise(bars)][::-1])
    draws, again = Draws(2, 1, 4), Draws(2, 1, 4)
    one = sampler(exact_denoise(full, 0.3, 0.5), draws(), full, draws, num_steps=num_steps)
    other = sampler(exact_denoise(short, 0.3, 0.5), again(), short, again, num_steps=num_steps)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@ALL
def test_one_step_is_the_estimate_from_pure_noise(sampler: Sampler, exact_denoise: Exact) -> None:
    schedule, x_t = linear(), Draws(2, 1, 4)()
    denoise = exact_denoise(schedule, 0.3, 0.5)
    got = sampler(denoise, x_t, schedule, no_noise, num_steps=1)
    torch.testing.assert_close(got, denoise(x_t, torch.ones(2)).x0, rtol=1e-5, atol=1e-5)


@ALL
@pytest.mark.parametrize("num_steps", [1, 5, 300])
def test_last_step_adds_no_noise(sampler: Sampler, num_steps: int) -> None:
    """It ends on the estimate itself; noise is drawn once for each other step, or never where there is none."""
    schedule, draws, clean = linear(), Draws(2, 1, 4), torch.full((2, 1, 4), 0.3, dtype=torch.float64)
    end = sampler(lambda x_t, t: Prediction(clean, x_t), draws(), schedule, draws, num_steps=num_steps)
    torch.testing.assert_close(end, clean, rtol=1e-12, atol=1e-12)
    options = getattr(sampler, "keywords", {})
    stochastic = options.get("eta", 0) > 0 or "variance" in options
    assert draws.count - 1 == (num_steps - 1 if stochastic else 0)


@ALL
@pytest.mark.parametrize("num_steps", [1, 7, 100])
def test_one_evaluation_a_step_and_each_is_told(sampler: Sampler, num_steps: int) -> None:
    schedule, draws, asked, told = linear(), Draws(3, 1, 2), [], []

    def denoise(x_t: Tensor, t: float) -> Prediction:
        asked.append((t, torch.tanh(x_t)))
        return Prediction(asked[-1][1], x_t)

    sampler(denoise, draws(), schedule, draws, num_steps=num_steps, on_step=lambda t, x0: told.append((t, x0)))
    assert list(dict.fromkeys(t for t, _ in told)) == grids.trailing(schedule, num_steps)
    assert len(told) == (2 * num_steps - 1 if getattr(sampler, "func", None) is heun else num_steps)
    assert [t for t, _ in asked] == [t for t, _ in told]
    assert all(a is b for (_, a), (_, b) in zip(asked, told, strict=True))


@ALL
def test_float32_stays_float32_and_the_start_is_left_alone(sampler: Sampler) -> None:
    schedule, x_t = linear(), torch.ones(2, 1, 4)
    end = sampler(nonlinear(schedule), x_t, schedule, lambda: torch.ones(2, 1, 4), num_steps=3)
    assert end.dtype == torch.float32
    assert torch.equal(x_t, torch.ones(2, 1, 4))


@ALL
def test_nothing_in_the_loop_waits_for_the_device(sampler: Sampler) -> None:
    """Tensors without values (meta) have none to wait for: reading one in the loop would raise."""
    x_t = torch.empty(2, 1, 8, device="meta")
    end = sampler(nonlinear(linear()), x_t, linear(), lambda: torch.empty_like(x_t), num_steps=4)
    assert (end.device.type, end.shape) == ("meta", x_t.shape)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (partial(ddpm, variance="gamma"), 'variance: expected "beta" or "beta_tilde", got \'gamma\''),
        (partial(ddim, eta=-0.1), "eta: expected 0 to 1, got -0.1"),
        (partial(ddim, eta=1.5), "eta: expected 0 to 1, got 1.5"),
        (partial(ddim, eta=float("nan")), "eta: expected 0 to 1, got nan"),
        (partial(ddpm, num_steps=4), "num_steps: expected 1 to 3 for this schedule of 3, got 4"),
        (partial(ddpm, num_steps=0), "num_steps: expected 1 to 3 for this schedule of 3, got 0"),
        (partial(ddim, num_steps=4), "num_steps: expected 1 to 3 for this schedule of 3, got 4"),
        (partial(ddim, num_steps=0), "num_steps: expected 1 to 3 for this schedule of 3, got 0"),
        (partial(unipc, num_steps=4), "num_steps: expected 1 to 3 for this schedule of 3, got 4"),
        (partial(unipc, order=5), "order: expected 1 to 4, got 5"),
        (partial(dpmpp, order=1), "order: expected 2 or 3, got 1"),
        (partial(dpmpp, eta=-1.0), "eta: expected 0 or more, got -1.0"),
        (partial(heun, churn=-1.0), "churn: expected 0 or more, got -1.0"),
    ],
)
def test_bad_options_are_refused(sampler: Sampler, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(nonlinear(explicit([0.9, 0.8, 0.7])), torch.zeros(1, 1, 1), explicit([0.9, 0.8, 0.7]), no_noise)


def test_default_of_ddpm_is_the_whole_chain() -> None:
    told: list[float] = []
    schedule = explicit([0.9, 0.8, 0.7])
    ddpm(nonlinear(schedule), Draws(1, 1, 1)(), schedule, Draws(1, 1, 1), on_step=lambda t, x0: told.append(t))
    assert told == grids.trailing(schedule, None)
    assert len(told) == 3


def test_noise_that_ends_abruptly_is_still_sampled_right(exact_denoise: Exact) -> None:
    """A last step that takes nearly all signal away: the chain must start after it, where x_t is noise."""
    schedule = explicit([0.99] * 30 + [1e-6])
    mean, variance = mean_and_variance(ddpm, exact_denoise(schedule, 2.0, 1.0), schedule, width=1)
    assert mean.item() == pytest.approx(2, abs=0.01)
    assert variance.item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("sampler", [unipc, partial(ddim, num_steps=20), partial(dpmpp, order=3)])
def test_pauses_stay_quiet_where_the_schedule_leaves_signal(sampler: Sampler, exact_loud_or_quiet: Exact) -> None:
    """DiffWave's T = 50: x_T of a waveform is quieter than noise, and a chain that starts louder never gets quiet."""

    def quiet(schedule: Schedule, std: float) -> float:
        """Part of the clips that come out quiet; it is half of the data."""
        draws = Draws(400, 1, 64)
        denoise = exact_loud_or_quiet(schedule, [0.5, 0.5], [0.01 * std, 2**0.5 * std])
        x0 = sampler(denoise, draws(), schedule, draws) / std
        return (x0.square().mean((1, 2)) < 0.1).double().mean().item()

    chain = linear(50, 1e-4, 0.05)
    assert quiet(input_scaled(chain, 0.1), 1.0) == pytest.approx(0.5, abs=0.15)
    assert quiet(chain, 0.1) < 0.2  # the same process, of which nobody has said how loud x0 is


@ALL
def test_the_loop_traces_into_one_graph(sampler: Sampler) -> None:
    """No graph breaks, which torch.compile and CUDA graphs require: the levels are constants of the graph."""
    schedule, x_t = linear(), Draws(2, 1, 8)()
    denoise, noise = nonlinear(schedule), Draws(2, 1, 8, seed=1)()

    def sample(x: Tensor) -> Tensor:
        return sampler(denoise, x, schedule, lambda: noise, num_steps=5)

    expected = sample(x_t)
    torch.compiler.reset()  # it counts every sampler as the same function
    torch.testing.assert_close(torch.compile(sample, fullgraph=True, backend="eager")(x_t), expected)


@ALL
def test_a_network_may_return_its_input(sampler: Sampler) -> None:
    """Samplers change x in place: the output must not change with it."""
    schedule, ends = linear(), []
    for net in (lambda x_t, t, cond: x_t, lambda x_t, t, cond: x_t.clone()):
        draws = Draws(2, 1, 4)
        denoise = Diffusion(schedule, Epsilon()).denoiser(net, {})
        ends.append(sampler(denoise, draws(), schedule, draws, num_steps=5))
    assert torch.equal(*ends)
