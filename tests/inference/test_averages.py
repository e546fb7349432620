"""Averages of any length: gamma, the weights of stored averages, and what a folder of snapshots gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from audio_diffusion.checkpoints import averages as stored
from audio_diffusion.checkpoints.averages import Snapshot
from audio_diffusion.checkpoints.folder import path_of, problem_of
from audio_diffusion.inference.averages import LONGEST, gamma_of, rebuild, solve_weights
from audio_diffusion.inference.targets import ConfigError

STEPS, EVERY, LENGTHS = 1000, 10, (0.05, 0.10)


def weights_of_steps(gamma: float, t: int) -> np.ndarray:
    """The weight of each step in the average at step t: the integral of the profile over the step, in closed form."""
    edges = np.minimum(np.arange(STEPS + 1), t) / t
    return np.diff(edges ** (gamma + 1))


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    """A random walk ``[steps, numbers]`` from random numbers of norm 1."""
    generator = np.random.default_rng(0)
    steps = 0.05 * generator.standard_normal((STEPS, 100))
    return steps.cumsum(0) + generator.standard_normal(100)


@pytest.mark.parametrize("length", [0.001, 0.01, 0.05, 0.10, 0.2, LONGEST])
def test_gamma_solves_the_papers_equation(length: float) -> None:
    gamma = gamma_of(length)
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(length, rel=1e-9)
    t = (np.arange(200_000) + 0.5) / 200_000
    profile = (gamma + 1) * t**gamma
    variance = (profile * (t - (profile * t).mean()) ** 2).mean()
    assert variance**0.5 == pytest.approx(length, rel=1e-3)


def test_gamma_of_the_papers_examples() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.29, float("nan")])
def test_lengths_out_of_range_are_refused(length: float) -> None:
    with pytest.raises(ValueError, match=r"length of an average: expected above 0 to 0\.2887"):
        gamma_of(length)


def test_the_inner_products_are_those_of_the_profiles() -> None:
    """The normal equations, against profiles on a grid: the solution cannot be improved by least squares on it."""
    stored_at = [(t, gamma_of(s)) for t in (200, 400, 600, 800, 1000) for s in LENGTHS]
    wanted = (1000, gamma_of(0.07))
    tau = (np.arange(100_000) + 0.5) / 100

    def profile(t: float, gamma: float) -> np.ndarray:
        return np.where(tau <= t, (gamma + 1) * (tau / t) ** gamma / t, 0)

    of_stored, of_wanted = np.stack([profile(*at) for at in stored_at]), profile(*wanted)
    x = solve_weights(stored_at, wanted)
    assert x.dtype == np.float64
    assert x.sum() == pytest.approx(1)

    def spread(x: np.ndarray) -> float:  # of the gradient of the squared distance: none, as x sums to 1
        return float(np.ptp(of_stored @ (x @ of_stored - of_wanted) / 100))

    assert spread(x) < 1e-8
    assert spread(solve_weights(stored_at, (1000, gamma_of(0.069)))) > 1e-6


def test_a_stored_average_is_taken_as_it_is() -> None:
    at = [(t, gamma_of(s)) for t in (100, 200, 300) for s in LENGTHS]
    np.testing.assert_allclose(solve_weights(at, at[3]), np.eye(6)[3], atol=1e-9)


@pytest.mark.parametrize("length", [0.01, 0.02, 0.05, 0.07, 0.10, 0.15, 0.2])
@pytest.mark.parametrize("scale", [1, 1_000_000])
def test_rebuilt_is_the_tracked_average_of_a_random_walk(walk: np.ndarray, length: float, scale: int) -> None:
    """Also where the steps are a million times as many, each a millionth: the solution depends on ratios of t alone."""
    at = [(t, gamma_of(s)) for t in range(EVERY, STEPS + 1, EVERY) for s in LENGTHS]
    x = solve_weights([(scale * t, gamma) for t, gamma in at], (scale * STEPS, gamma_of(length)))
    found = sum(weight * (weights_of_steps(gamma, t) @ walk) for weight, (t, gamma) in zip(x, at, strict=True))
    tracked = weights_of_steps(gamma_of(length), STEPS) @ walk
    assert np.linalg.norm(found - tracked) < 1e-3 * np.linalg.norm(tracked)
    other = weights_of_steps(gamma_of(length) * 1.3, STEPS) @ walk
    assert np.linalg.norm(other - tracked) > 1e-3 * np.linalg.norm(tracked)  # the test can fail


def snapshot(walk: np.ndarray, t: int, origin: int = 0) -> Snapshot:
    values = [torch.tensor(weights_of_steps(gamma_of(s), t) @ walk).float() for s in LENGTHS]
    averages = [{"weight": value, "small": 1e-9 * value} for value in values]
    return Snapshot(origin + t, origin, t, LENGTHS, averages, {"buffer": torch.tensor(t)})


@pytest.fixture
def folder(walk: np.ndarray, tmp_path: Path) -> Path:
    for t in range(100, STEPS + 1, 100):
        stored.write(tmp_path, vars(snapshot(walk, t)))
    return tmp_path


def error(found: torch.Tensor, walk: np.ndarray, length: float, t: int) -> float:
    tracked = weights_of_steps(gamma_of(length), t) @ walk
    return float(np.linalg.norm(found.double().numpy() - tracked) / np.linalg.norm(tracked))


@pytest.mark.parametrize("step", [None, 700])
def test_a_folder_gives_any_length_at_any_snapshot(folder: Path, walk: np.ndarray, step: int | None) -> None:
    state, at = rebuild(folder, 0.08, step)
    assert at == (step or STEPS)
    assert error(state["weight"], walk, 0.08, at) < 1e-3
    assert state["weight"].dtype == torch.float32
    assert state["buffer"] == at
    assert rebuild(str(folder), 0.05, step)[0]["weight"].equal(stored.read(path_of(folder, at)).averages[0]["weight"])


def test_float16_keeps_tensors_of_small_numbers(folder: Path, walk: np.ndarray) -> None:
    for t in range(100, STEPS + 1, 100):
        stored.write(folder, vars(snapshot(walk, t).halved()))
    assert stored.read(path_of(folder, STEPS)).averages[0]["small"].dtype == torch.float16
    state, _ = rebuild(folder, 0.08)
    assert 1e-6 < error(state["weight"], walk, 0.08, STEPS) < 1e-3
    torch.testing.assert_close(1e9 * state["small"], state["weight"], rtol=0, atol=2e-3)


def test_damaged_snapshots_are_passed_over_with_a_line(folder: Path, walk: np.ndarray, caplog) -> None:
    path = path_of(folder, 300)
    path.write_bytes(path.read_bytes()[:-1])
    assert error(rebuild(folder, 0.08)[0]["weight"], walk, 0.08, STEPS) < 1e-2
    assert "step_00000300.ckpt: has" in caplog.text
    assert "rebuilt without it" in caplog.text
    with pytest.raises(ConfigError, match=r"expected a valid snapshot of step 300 .* those of steps 100, 200, 300"):
        rebuild(folder, 0.08, 300)


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has none: train with callbacks=power_ema"):
        rebuild(tmp_path, 0.08)


def test_snapshots_of_averages_that_began_elsewhere_are_not_mixed_in(folder: Path, walk: np.ndarray) -> None:
    for t in range(100, 501, 100):
        stored.write(folder, vars(snapshot(walk, t, origin=STEPS)))
    state, at = rebuild(folder, 0.08)
    assert at == STEPS + 500
    assert error(state["weight"], walk, 0.08, 500) < 2e-3


def test_rewinding_removes_what_is_written_again(folder: Path) -> None:
    assert stored.rewind(folder, 800, 100) == 2
    assert problem_of(path_of(folder, 800)) is None
    assert stored.rewind(folder, 800, 300) == 0  # of a run that ended there; it is not due
    assert sorted(path.name for path in folder.iterdir())[-1] == "step_00000700.json"
    assert stored.rewind(folder / "none", 0, 1) == 0
