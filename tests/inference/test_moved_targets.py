"""Configurations of older versions, as they are kept in checkpoints and exported models, still build."""

import importlib
import inspect
from typing import Any

import pytest
import torch

from audio_diffusion.diffusion.parameterization import EdmPreconditioning
from audio_diffusion.diffusion.schedules import VarianceExploding, linear, lowered
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.inference.targets import MOVED, RENAMED, build, target_problems, with_moved

D = "audio_diffusion.diffusion"
OLD: dict[str, Any] = {
    "diffusion": {
        "_target_": f"{D}.process.Diffusion",
        "schedule": {
            "_target_": f"{D}.schedules.lowered", "floor_db": -80.0, "num_steps": 20,
            "schedule": {"_target_": f"{D}.schedules.linear", "num_steps": 100},
        },
        "parameterization": {"_target_": f"{D}.parameterization.Epsilon"},
    },
    "sampler": {
        "_target_": f"{D}.samplers.dpmpp", "_partial_": True, "num_steps": 5, "order": 3,
        "grid": {"_target_": f"{D}.grids.karras", "_partial_": True},
    },
}  # fmt: skip


def _of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    found = importlib.import_module(module)
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(path)


def test_every_old_name_is_gone_and_every_new_one_is_there() -> None:
    for old, new in MOVED.items():
        with pytest.raises((ImportError, AttributeError)):
            _of(old)
        assert callable(_of(new)) or inspect.ismodule(_of(new))
    for target, renamed in RENAMED.items():
        names = set(_of(target).__code__.co_varnames)
        assert not set(renamed) & names
        assert set(renamed.values()) <= names


def test_an_older_configuration_builds_what_it_did() -> None:
    current = with_moved(OLD)
    assert target_problems(current) == []
    process, sampler = build(current["diffusion"], "diffusion"), build(current["sampler"], "sampler")
    assert torch.equal(process.schedule.times, lowered(linear(100), -80.0, 20).times)
    assert (sampler.func, sampler.keywords["order"], sampler.keywords["num_steps"]) == (dpmpp, 3, 5)
    assert isinstance(build(with_moved({"_target_": f"{D}.schedules.Edm"}), "s"), VarianceExploding)
    part = build(with_moved({"_target_": f"{D}.parameterization.Edm", "sigma_data": 0.5}), "p")
    assert isinstance(part, EdmPreconditioning)
    assert part.sigma_data == 0.5


def test_it_is_the_current_one_under_its_current_names() -> None:
    """So that resuming reports no change. Nothing else is touched, not even an argument of the same name."""
    current = with_moved(OLD)
    schedule = current["diffusion"]["schedule"]
    assert schedule.pop("prepended_steps") == 20
    assert "num_steps" not in schedule
    assert schedule["schedule"] == OLD["diffusion"]["schedule"]["schedule"]
    assert current["sampler"] == {**OLD["sampler"], "_target_": f"{D}.solvers.dpmpp.dpmpp"}
    assert OLD["diffusion"]["schedule"]["num_steps"] == 20  # what was given is left alone
    assert with_moved({"a": [1, {"b": None}], "_target_": 3}) == {"a": [1, {"b": None}], "_target_": 3}
