"""Models apart from their runs: what is in the folder, what is needed to load it, and the way to a hub and back."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import audio_diffusion
from audio_diffusion import Model
from audio_diffusion.inference import exporting
from audio_diffusion.inference.targets import ConfigError

WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning", "hydra", "omegaconf", "wandb", "webdataset"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import audio_diffusion, torch
model = audio_diffusion.load(sys.argv[1])
print([name for name in ("torch._dynamo", "torch.distributed.checkpoint") if name in sys.modules])  # seconds each
torch.save(model.generate([1], ["kick"]), sys.argv[2])
"""


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    return audio_diffusion.export(model, tmp_path / "exported")


def test_an_exported_model_makes_the_same_sound(model: Model, folder: Path, tiny_checkpoint: Path) -> None:
    again = audio_diffusion.load(folder)
    assert (again.step, again.weights, again.source) == (7, "ema", folder)
    assert again.guidance_scale == model.guidance_scale == 1.5
    assert again.crop == model.crop
    assert "callbacks" not in json.loads((folder / "config.json").read_text())["config"]
    assert torch.equal(again.generate([1], ["kick"]), model.generate([1], ["kick"]))
    from_file = audio_diffusion.load(tiny_checkpoint)
    assert torch.equal(from_file.generate([1], ["kick"]), again.generate([1], ["kick"]))


def test_it_holds_the_weights_and_nothing_of_where_the_data_were(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert "secret" not in (folder / "config.json").read_text()
    card = (folder / "README.md").read_text()
    for words in ("license:", "hat, kick", "8000 Hz", "0.128 s", "fill in"):
        assert words in card


@pytest.mark.slow
def test_it_loads_where_there_is_neither_lightning_nor_hydra(model: Model, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(folder), str(tmp_path / "audio.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stdout + done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "audio.pt"), model.generate([1], ["kick"]))


def test_no_foreign_code_is_run(folder: Path) -> None:
    about = json.loads((folder / "config.json").read_text())
    about["config"]["sampler"]["_target_"] = "os.system"
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"'os.system'.*trust=\[os\]"):
        audio_diffusion.load(folder)


def test_what_is_broken_is_named(model: Model, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists and is not empty"):
        audio_diffusion.export(model, folder)
    with pytest.raises(ConfigError, match="was exported with ema weights, got 'raw'"):
        audio_diffusion.load(folder, weights="raw")
    state = load_file(folder / "model.safetensors")
    state.popitem()
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="has other weights than its network"):
        audio_diffusion.load(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read as an exported model"):
        audio_diffusion.load(folder)


def test_push_and_load_go_through_the_hub(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that is a folder, called as huggingface_hub is."""
    hub = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert (private, exist_ok) == (True, True)
            (hub / repo_id).mkdir(parents=True)

        def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str]) -> None:
            for name in allow_patterns:
                (hub / repo_id / name).write_bytes(Path(folder_path, name).read_bytes())

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        return str(hub / repo_id)

    fake: Any = SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    (folder / "notes.txt").write_text("not for others")
    assert audio_diffusion.push(folder, "someone/drums") == "hub:someone/drums"
    assert not (hub / "someone/drums/notes.txt").exists()
    again = audio_diffusion.load("hub:someone/drums")
    assert torch.equal(again.generate([1], ["kick"]), model.generate([1], ["kick"]))
    with pytest.raises(ConfigError, match="folder: expected one that export wrote"):
        audio_diffusion.push(tmp_path, "someone/drums")


def test_the_hub_is_called_by_names_that_it_has() -> None:
    hub = pytest.importorskip("huggingface_hub")
    import inspect

    assert {"private", "exist_ok"} <= inspect.signature(hub.HfApi.create_repo).parameters.keys()
    uploaded = inspect.signature(hub.HfApi.upload_folder).parameters.keys()
    assert {"repo_id", "folder_path", "allow_patterns"} <= uploaded
    assert "allow_patterns" in inspect.signature(hub.snapshot_download).parameters


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[hub\]'"):
        exporting.pull("hub:someone/drums")


@pytest.mark.parametrize("name", exporting.FILES[:2])
def test_a_folder_that_lacks_a_part_of_a_model_is_told_so(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"looks like an exported model, but {name} is missing"):
        audio_diffusion.load(folder)
