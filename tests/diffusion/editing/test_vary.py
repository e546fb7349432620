"""Variations: from the clip itself to a fresh sample."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion import grids
from audio_diffusion.diffusion.editing import vary
from audio_diffusion.diffusion.editing.vary import From, edit, time_of_noise
from audio_diffusion.diffusion.generation import generate
from audio_diffusion.diffusion.parameterization import Velocity
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, linear, lowered
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc

LENGTH = 48
Cov = Callable[[int], Tensor]
NetOf = Callable[[Diffusion, Tensor], Net]
SAMPLERS = pytest.mark.parametrize(
    "sampler", [unipc, partial(ddpm, num_steps=30), partial(dpmpp, eta=1.0, grid=grids.karras), heun, ddim]
)


@SAMPLERS
def test_ends(
    sampler: Callable[..., Tensor], process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    net, clip = net_of(process, covariance(LENGTH)), draw(covariance(LENGTH), 3)
    made = [edit(net, process, sampler, clip, [5, 6, 7], {}, strength=s) for s in (0, 1)]
    assert torch.equal(made[0], clip)
    assert torch.equal(made[1], generate(net, process, sampler, clip.shape[1:], [5, 6, 7], {}))


@SAMPLERS
def test_more_strength_is_farther_away_and_still_sounds_like_the_data(
    sampler: Callable[..., Tensor], process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    """Of data that the clip is drawn from, each variation is a draw too: its level stays."""
    net, clip = net_of(process, covariance(LENGTH)), draw(covariance(LENGTH), 1000)
    made = [edit(net, process, sampler, clip, range(1000), {}, strength=s) for s in (0.05, 0.4, 0.9)]
    away = [(x - clip).square().mean().item() for x in made]
    assert all(near < far for near, far in pairwise(away))
    assert away[0] < 0.02
    assert 0.6 < away[-1] < 2
    for x in made:
        assert x.square().mean().item() == pytest.approx(1, abs=0.06)


def test_a_variation_is_the_same_in_any_batch(
    process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    net, clip = net_of(process, covariance(LENGTH)), draw(covariance(LENGTH), 3)
    sampler = partial(dpmpp, eta=1.0)
    together = edit(net, process, sampler, clip, [1, 2, 3], {}, strength=0.6)
    alone = [edit(net, process, sampler, clip[i : i + 1], [i + 1], {}, strength=0.6) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "schedule", [lowered(linear()), linear(), VarianceExploding(), Flow()], ids=["lowered", "linear", "edm", "flow"]
)
@pytest.mark.parametrize("ratio", [0.01, 0.1, 1.0, 5.0])
def test_times_of_noise_levels(schedule: Schedule, ratio: float) -> None:
    alpha, sigma = schedule.at(time_of_noise(schedule, ratio))
    least = max(ratio, schedule.at(schedule.first_time)[1])
    assert sigma / alpha == pytest.approx(least, rel=0.03 if schedule.num_steps is None or ratio > 0.1 else 0.25)


def test_part_of_a_grid() -> None:
    schedule = lowered(linear())
    start = time_of_noise(schedule, 0.5)
    times = From(start, grids.balanced)(schedule, 20)
    whole = grids.balanced(schedule, 20)
    assert times[0] == start
    assert len(times) == 20
    assert all(earlier > later for earlier, later in pairwise(times))
    assert From(2.0, grids.balanced)(schedule, 20) == whole


def test_other_processes() -> None:
    """Flow: alpha and sigma do not square to 1, which the start must mind: white data, its level kept."""
    process = Diffusion(Flow(), Velocity())

    def net(x_t: Tensor, t: Tensor, cond: dict) -> Tensor:
        alpha, sigma = process.schedule.at(t[0].item())
        return (sigma - alpha) / (alpha**2 + sigma**2) * x_t  # E[noise - x0 | x_t]

    clip = torch.randn(4, 1, 5000, generator=torch.Generator().manual_seed(0))
    made = edit(net, process, unipc, clip, range(1, 5), {}, strength=0.7)
    assert made.std().item() == pytest.approx(1, abs=0.02)
    assert 0.3 < (made * clip).mean().item() < 0.95


def test_bad_values_are_refused(process: Diffusion) -> None:
    clip, net = torch.zeros(2, 1, 8), lambda x_t, t, cond: x_t
    with pytest.raises(ValueError, match=r"strength: expected 0 .* to 1 .*, got 1.5"):
        edit(net, process, unipc, clip, [0, 1], {}, strength=1.5)
    with pytest.raises(ValueError, match="seeds: expected one for each of 2 clips, got 1"):
        edit(net, process, unipc, clip, [0], {})


@pytest.mark.parametrize("strength", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("num_steps", [2, 7, 25])
def test_the_finer_grid_is_the_coarsest_that_is_enough(strength: float, num_steps: int) -> None:
    """Found in few tries, it is that of trying one after the other."""
    schedule, grid = lowered(linear()), grids.balanced
    start = vary.time_of_strength(schedule, strength)
    tried: list[int] = []

    def counted(schedule: Schedule, num_steps: int | None) -> list[float]:
        tried.append(num_steps or 0)
        return grid(schedule, num_steps)

    got = vary.From(start, counted)(schedule, num_steps)
    wanted = len(grid(schedule, num_steps)) - 1
    counts = range(num_steps, 4 * num_steps + 1)
    later = [[t for t in grid(schedule, count) if t < start] for count in counts]
    first = next((times for times in later if len(times) >= wanted), later[-1])
    assert got[1:] in (first, first[1:])
    assert len(tried) < 12
