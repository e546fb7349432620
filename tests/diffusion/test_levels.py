"""Whether samplers keep levels: every schedule, solver and grid there is, on data whose exact denoiser is known."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from audio_diffusion.cli.config import CONFIG_DIR
from audio_diffusion.diffusion import grids
from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.levels import TOLERATED_DB, describe_levels, level_error
from audio_diffusion.diffusion.parameterization import Epsilon, Velocity
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.schedule import Grid
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, input_scaled, linear, lowered
from audio_diffusion.diffusion.schedules import zero_terminal_snr as zero
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc
from audio_diffusion.inference.targets import build

NAMES = {group: sorted(p.stem for p in (CONFIG_DIR / group).glob("*.yaml")) for group in ("diffusion", "sampler")}
GRIDS = sorted(p.stem for p in (CONFIG_DIR / "sampler/grid").glob("*.yaml"))


@pytest.fixture(scope="module")
def built() -> Iterator[Callable[..., Any]]:
    """built("diffusion", "flow"), built("sampler", "ddim"), built("sampler.grid", "karras"): each made once."""
    known: dict[tuple[str, str], Any] = {}

    def make(node: str, name: str) -> Any:
        if (node, name) not in known:
            option = f"{node.replace('.', '/')}={name}"
            cfg = compose("train", overrides=[option, "name=x", "classes=[]"])
            plain = OmegaConf.to_container(OmegaConf.select(cfg, node), resolve=True)
            known[node, name] = build(plain, node)
        return known[node, name]

    with initialize_config_dir(str(Path(CONFIG_DIR).absolute()), version_base="1.3"):
        yield make


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampler", NAMES["sampler"])
@pytest.mark.parametrize("diffusion", NAMES["diffusion"])
def test_every_combination_is_right_or_warned_of(
    diffusion: str, sampler: str, grid: str, built: Callable[..., Any]
) -> None:
    """In 50 steps, or as many as a shorter chain has. No multistep solver, nor Heun's, makes noise of any of them."""
    process, solver = built("diffusion", diffusion), built("sampler", sampler)
    steps = None if grid == "of_betas" else 50
    chosen = partial(solver, grid=built("sampler.grid", grid), num_steps=steps)
    if steps and (process.schedule.num_steps or 1000) < steps:
        with pytest.raises(ValueError, match=r"sampler\.num_steps="):
            level_error(process.schedule, chosen)
        chosen = partial(chosen, num_steps=None)
    found = level_error(process.schedule, chosen)
    told, *warnings = describe_levels(process, chosen)
    assert "error" not in told
    if found.worst_db > TOLERATED_DB:
        assert f"loud sounds (-6 dB) {abs(found.loud_db):.1f} dB too {'loud' if found.loud_db > 0 else 'quiet'}" in told
        assert f"quiet sounds (-40 dB) {abs(found.quiet_db):.1f} dB too" in told
        (warning,) = warnings
        assert warning.startswith("warning: with this solver, grid and number of steps ")
        assert ("loud sounds (-6 dB) come out" in warning) == (abs(found.loud_db) > TOLERATED_DB)
        assert ("quiet sounds (-40 dB) come out" in warning) == (abs(found.quiet_db) > TOLERATED_DB)
        assert "Choose sampler" in warning or "diffusion=default" in warning
    else:
        assert told == f"sampler: loud and quiet sounds keep their level (within {max(found.worst_db, 0.1):.1f} dB)"
        assert warnings == []
    if sampler not in ("ddpm", "heun") or steps:
        assert found.loud_db < 4.0
    if sampler != "ddpm" and steps:
        assert found.quiet_db < 6.0


@pytest.mark.parametrize(
    ("sampler", "grid", "loud_db", "quiet_db"),
    [
        (partial(dpmpp, order=3, eta=1.0), grids.uniform, 1, -5),  # 26 and 18 dB of noise, unlimited
        (partial(dpmpp, order=3, eta=1.0), grids.trailing, 1, -12),
        (partial(dpmpp, order=3), grids.uniform, 1, -5),
        (unipc, grids.uniform, 1, -5),
        (unipc, grids.balanced, 0.1, -0.1),
        (partial(dpmpp, order=3, eta=1.0), grids.log_snr, 0.1, -0.1),
    ],
)
def test_uneven_steps_are_of_lower_order(
    sampler: Callable[..., Tensor], grid: Grid, loud_db: float, quiet_db: float
) -> None:
    found = level_error(lowered(linear()), partial(sampler, grid=grid, num_steps=50))
    assert abs(found.loud_db) < loud_db
    assert quiet_db < found.quiet_db < 1


@pytest.mark.parametrize("schedule", [Flow(), zero(lowered(linear()))], ids=["flow", "zero-snr"])
@pytest.mark.parametrize("grid", [grids.log_snr, grids.karras, grids.balanced])
def test_heun_in_five_steps_makes_no_noise(schedule: Any, grid: Grid) -> None:
    """Its correction of steps over which the noise falls a hundredfold was 20 to 30 dB of noise."""
    found = level_error(schedule, partial(heun, grid=grid, num_steps=5))
    assert found.loud_db < 3
    assert found.quiet_db < 3


@pytest.mark.parametrize("sampler", [partial(ddpm, num_steps=50), partial(ddim, num_steps=50), unipc, heun])
def test_what_is_measured_is_what_noise_gives(
    sampler: Callable[..., Tensor], exact_denoise: Callable[..., Denoiser]
) -> None:
    """The level of 20,000 samples of real noise: its standard error is 0.5 % or 0.04 dB."""
    schedule, generator = lowered(linear()), torch.Generator().manual_seed(0)
    std = 10 ** (torch.tensor([-6.0, -40.0]) / 20)
    draw = lambda: torch.randn(20_000, 1, 2, generator=generator, dtype=torch.float64)  # noqa: E731
    x0 = sampler(exact_denoise(schedule, 0.0, std.double()), draw(), schedule, draw)[:, 0]
    heard = 20 * (x0.square().mean(0).sqrt() / std).log10()
    found = level_error(schedule, sampler)
    assert heard.tolist() == pytest.approx([found.loud_db, found.quiet_db], abs=0.2)


def test_the_advice_is_measured() -> None:
    """What is recommended in place of a solver that loses quiet sounds keeps them."""
    *_, warning = describe_levels(Diffusion(lowered(linear()), Epsilon()), partial(ddim, grid=grids.trailing))
    assert "quiet sounds (-40 dB) come out 8.3 dB too quiet" in warning
    assert "Choose sampler/grid=balanced" in warning
    assert level_error(lowered(linear()), partial(ddim, grid=grids.balanced)).worst_db < TOLERATED_DB


def test_the_default_sampler_is_right() -> None:
    assert len(describe_levels(Diffusion(lowered(linear()), Epsilon()), partial(unipc, num_steps=25))) == 1
    assert len(describe_levels(Diffusion(Flow(), Velocity()), partial(unipc, num_steps=25))) == 1


@pytest.mark.parametrize("schedule", [lowered(linear()), Flow()], ids=["chain", "flow"])
def test_too_many_or_no_steps_name_the_option(schedule: Any) -> None:
    with pytest.raises(ValueError, match=r"sampler\.num_steps="):
        level_error(schedule, partial(unipc, num_steps=0))


@pytest.mark.parametrize("num_steps", [10, 25, 50, 100])
@pytest.mark.parametrize(
    "schedule", [lowered(linear()), Flow(), zero(lowered(linear())), VarianceExploding()], ids=lambda s: s.kind
)
@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_first_order_solvers_keep_quiet_sounds_by_default(sampler: Any, schedule: Any, num_steps: int) -> None:
    """On the evenly spaced grid, 50 steps of DDIM lost 8 dB of what is at -40 dB, and 50 of DDPM won 14 dB."""
    found = level_error(schedule, partial(sampler, num_steps=num_steps))
    assert found.worst_db < {10: 6.0, 25: 3.7, 50: 2.1, 100: 1.1}[num_steps]


def test_fresh_noise_is_not_amplified_at_the_end_of_a_short_chain() -> None:
    """SDE-3M on DiffWave's fifty steps was 3.4 dB too loud: the last two are 1.5 and 2.5 times as long."""
    found = level_error(input_scaled(linear(50, 1e-4, 0.05), 0.1), partial(dpmpp, order=3, eta=1.0, num_steps=50))
    assert abs(found.loud_db) < 1.5


def of_a_user(error: type[Exception]) -> Callable[..., Tensor]:
    def sampler(denoise: Denoiser, x: Tensor, schedule: Any, draw: Callable[[], Tensor]) -> Tensor:
        raise error("expected 16384 samples\nand float32")

    return sampler


@pytest.mark.parametrize("error", [RuntimeError, ValueError, AssertionError])
def test_a_sampler_that_cannot_be_measured_is_warned_of_in_one_line(error: type[Exception]) -> None:
    lines = describe_levels(Diffusion(lowered(linear()), Epsilon()), partial(of_a_user(error)))
    assert [line.startswith("warning: ") for line in lines] == [False, True]
    assert "levels were not measured" in lines[1]
    assert lines[1].endswith(f"({error.__name__}: expected 16384 samples)")
