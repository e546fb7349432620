"""Configurations of older versions, as they are kept in checkpoints and exported models, still build."""

import importlib
import inspect
from typing import Any

import pytest
import torch

from audio_diffusion.diffusion.parameterization import EdmPreconditioning
from audio_diffusion.diffusion.schedules import VarianceExploding, linear, lowered
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.inference.targets import MOVED, PARTS, RENAMED, build, target_problems, with_moved

D = "audio_diffusion.diffusion"
DATA = "audio_diffusion.data.datamodule.AudioDataModule"
SAMPLING = "audio_diffusion.callbacks.sampling.SampleAudio"
TRAINED = "audio_diffusion.training.module.DiffusionModule"
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
        names = set(inspect.signature(_of(target)).parameters)
        assert not set(renamed) & names
        for new in filter(None, renamed.values()):
            part, _, name = new.rpartition(".")
            assert (part or name) in names
            assert not part or name in inspect.signature(_of(PARTS[target][part])).parameters


def test_options_that_have_moved_into_a_part_are_found_there() -> None:
    old = {
        "data": {"_target_": DATA, "train": "x", "seed": 3, "pad": False, "augment": None, "sample_rate": 8000},
        "callbacks": {"sampling": {"_target_": SAMPLING, "shape": [1, 9], "guidance_scale": 2.0, "page": None}},
    }
    current = with_moved(old)
    assert current["data"] == {
        "_target_": DATA,
        "train": "x",
        "order": {"_target_": "audio_diffusion.data.order.StreamOrder", "seed": 3},
        "reading": {"_target_": "audio_diffusion.data.stream.Reading", "pad": False, "augment": None},
        "crop": {"_target_": "audio_diffusion.data.training_data.CropFormat", "sample_rate": 8000},
    }
    guidance = {"_target_": "audio_diffusion.diffusion.guidance.Guidance", "scale": 2.0}
    assert current["callbacks"]["sampling"] == {"_target_": SAMPLING, "guidance": guidance, "page": None}
    assert current["guidance_scale"] == 2.0
    assert with_moved(current) == current


def test_an_argument_in_a_file_of_the_users_own_is_told_its_new_name() -> None:
    (problem,) = target_problems({"_target_": TRAINED, "_partial_": True, "cond_dropout": 0.2}, "training")
    assert problem.endswith("has no such argument. It is called training.loss.cond_dropout now.")


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
