"""A checkpoint from somewhere else runs no code."""

from pathlib import Path

import pytest
import torch

from audio_diffusion import checkpoint
from audio_diffusion.config import ConfigError


@pytest.mark.parametrize("place", ["model", "diffusion", "sampler", "representation", "inside"])
def test_a_foreign_target_in_a_checkpoint_is_refused(tmp_path: Path, place: str) -> None:
    evil = {"_target_": "os.system", "command": f"touch {tmp_path}/canary"}
    good = {"_target_": "audio_diffusion.models.representations.Waveform", "scale": 1.0}
    config = {name: dict(good) for name in ("model", "diffusion", "sampler", "representation")}
    if place == "inside":
        config["model"] = {**good, "parts": [{"deeper": evil}]}
    else:
        config[place] = evil
    path = tmp_path / "step_00000001.ckpt"
    torch.save({"state_dict": {}, "config": config, "global_step": 1}, path)
    with pytest.raises(ConfigError, match=r"its configuration names 'os\.system'; only audio_diffusion\.models\."):
        checkpoint.load(path)
    assert not (tmp_path / "canary").exists()


def test_pickled_code_in_a_checkpoint_is_refused_and_named(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self):
            return (Path(tmp_path / "canary").touch, ())

    path = tmp_path / "step_00000001.ckpt"
    torch.save({"state_dict": Canary()}, path)
    with pytest.raises(ConfigError, match="cannot be read as plain data"):
        checkpoint.read(path)
    assert not (tmp_path / "canary").exists()
