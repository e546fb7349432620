"""A checkpoint from somewhere else runs no code."""

from pathlib import Path

import pytest
import torch

from audio_diffusion.cli.config import ConfigError
from audio_diffusion.inference import checkpoint_reader
from audio_diffusion.inference.loading import load


@pytest.mark.parametrize("place", ["model", "diffusion", "sampler", "representation", "inside"])
def test_a_foreign_target_in_a_checkpoint_is_refused(tmp_path: Path, place: str) -> None:
    evil = {"_target_": "os.system", "command": f"touch {tmp_path}/canary"}
    good = {"_target_": "audio_diffusion.representations.waveform.Waveform", "scale": 1.0}
    config = {name: dict(good) for name in ("model", "diffusion", "sampler", "representation")}
    if place == "inside":
        config["model"] = {**good, "parts": [{"deeper": evil}]}
    else:
        config[place] = evil
    path = tmp_path / "step_00000001.ckpt"
    torch.save({"state_dict": {}, "config": config, "global_step": 1}, path)
    with pytest.raises(ConfigError, match=r"its configuration names 'os\.system'.*trust=\[os\]"):
        load(path)
    assert not (tmp_path / "canary").exists()


def test_pickled_code_in_a_checkpoint_is_refused_and_named(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self):
            return (Path(tmp_path / "canary").touch, ())

    path = tmp_path / "step_00000001.ckpt"
    torch.save({"state_dict": Canary()}, path)
    with pytest.raises(ConfigError, match="cannot be read as plain data: it holds ") as caught:
        checkpoint_reader.read(path)
    assert "weights_only" not in str(caught.value)  # torch's advice is to switch that off
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a text", "it is not a checkpoint, which torch.save writes"),
        (b'{"step": 3}', "it is not a checkpoint, which torch.save writes"),
        (b"", "it is not a checkpoint, which torch.save writes"),
    ],
)
def test_what_is_no_checkpoint_is_said_so_without_advice_to_run_its_code(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        checkpoint_reader.read(path)
    assert str(caught.value) == f"ckpt: {str(path)!r} cannot be read as plain data: {message}"


def test_a_manifest_given_for_its_checkpoint_names_it(tmp_path: Path) -> None:
    (tmp_path / "step_00000001.ckpt").touch()
    (tmp_path / "step_00000001.json").touch()
    with pytest.raises(ConfigError, match=r"is the manifest of a checkpoint; use ckpt=.*step_00000001\.ckpt"):
        checkpoint_reader.find(str(tmp_path / "step_00000001.json"))
