"""Files that older versions have written are still used: one small run and its export are kept of each format."""

import importlib.util
from pathlib import Path

import pytest
import torch

import audio_diffusion
from audio_diffusion.cli.run_folder import _stored
from audio_diffusion.inference.targets import MOVED, load_object, target_problems, with_moved

OLDER = Path(__file__).parent / "older"
FILES = sorted([*OLDER.glob("*/step_*.ckpt"), *OLDER.glob("*/exported")])
#: the first samples of seed 0, labels=["kick"], as the version that wrote the files has made them
MADE = {
    "0.1": [-0.0698363333940506, -0.07124549150466919, -0.015725934877991676, -0.02692999131977558, 0.05301649123430252]
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_an_older_file_is_loaded_and_makes_the_same_sound(file: Path) -> None:
    model = audio_diffusion.load(file)
    assert model.guidance_scale == 1.5  # was an option of callbacks.sampling alone
    audio = model.generate(seeds=[0], labels=["kick"])
    assert audio[0, 0, :5].tolist() == pytest.approx(MADE[file.parent.name], abs=1e-5)


@pytest.mark.parametrize("file", OLDER.glob("*/step_*.ckpt"), ids=lambda file: file.parent.name)
def test_what_a_resumed_run_compares_has_the_present_names(file: Path) -> None:
    _, config = _stored(file)
    given = {"training": ("net", "process", "representation")}
    groups = ("model", "representation", "diffusion", "data", "training")
    assert [p for group in groups for p in target_problems(config[group], group, given.get(group, ()))] == []


def test_each_target_that_has_moved_is_where_the_table_says() -> None:
    assert FILES
    for new in MOVED.values():
        module = new.rpartition(".")[0]
        is_module = importlib.util.find_spec(module).submodule_search_locations and importlib.util.find_spec(new)
        assert is_module or load_object(new)
    node = {"a": [{"_target_": "audio_diffusion.models.unet1d.UNet1d", "x": {"_target_": "torch.optim.SGD"}}]}
    assert with_moved(node) == {
        "a": [{"_target_": "audio_diffusion.networks.unet1d.UNet1d", "x": {"_target_": "torch.optim.SGD"}}]
    }
    assert torch.is_tensor(with_moved({"t": torch.zeros(1)})["t"])  # other values stay
