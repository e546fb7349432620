"""A network as small as they get, its weights moved so that it does something, as a model and as a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_diffusion import Generator, checkpoint
from audio_diffusion.targets import build

RATE, LENGTH = 8000, 1024
_MODELS, _SAMPLERS, _DIFFUSION = (
    f"audio_diffusion.{path}." for path in ("models", "diffusion.samplers", "diffusion.schedules")
)


def recipe(conditions: dict[str, Any], channels: int) -> dict[str, Any]:
    """What of a run's configuration a checkpoint is loaded by, and a secret."""
    return {
        "name": "tiny",
        "audio": {"sample_rate": RATE, "channels": channels, "num_samples": LENGTH},
        "classes": ["hat", "kick"],
        "callbacks": {"sampling": {"guidance_scale": 1.5}},
        "model": {
            "_target_": f"{_MODELS}unet1d.UNet1d", "channels": channels, "conditions": conditions,
            "patch_size": 16, "widths": [8, 16], "factors": [4], "num_blocks": 1, "cond_width": 16, "attention": False,
        },
        "representation": {"_target_": f"{_MODELS}representations.Waveform", "scale": 3.7},
        "diffusion": {
            "_target_": "audio_diffusion.diffusion.process.Diffusion",
            "schedule": {"_target_": f"{_DIFFUSION}linear"},
            "parameterization": {"_target_": "audio_diffusion.diffusion.parameterization.Epsilon"},
        },
        "sampler": {"_target_": f"{_SAMPLERS}unipc", "_partial_": True, "num_steps": 3},
        "data": {
            "train": "nowhere", "val": None, "fields": [], "store": {"storage_options": {"s3": {"key": "secret"}}},
        },
    }  # fmt: skip


LABEL = {"label": {"_target_": f"{_MODELS}conditions.Label", "num_classes": 2}}
MEL = {
    "mel": {
        "_target_": f"{_MODELS}mel.Mel", "field": "audio", "sample_rate": RATE, "channels": 1, "n_mels": 8,
        "n_fft": 256, "hop": 64,
    }
}  # fmt: skip
START = {
    "seconds_start": {"_target_": f"{_MODELS}conditions.Number", "low": 0, "high": 10},
}


def state_of(config: dict[str, Any]) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(config["model"], "model")
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return net.state_dict()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Generator]:
    """make_model("label" or "mel" or "start" or nothing, channels=1) -> Generator."""
    known = {"label": LABEL, "mel": MEL, "start": START, "nothing": {}}

    def make(told: str = "label", channels: int = 1) -> Generator:
        config = recipe(known[told], channels)
        return checkpoint.assemble(config, state_of(config), 7, "ema", "cpu", Path("tiny.ckpt"))

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Generator]) -> Generator:
    """A model of two classes, 8 kHz, 1024 samples."""
    return make_model()


def _saved(folder: Path, told: dict[str, Any]) -> Path:
    path, config = folder / "tiny.ckpt", recipe(told, 1)
    state = state_of(config)
    both = {f"{prefix}net.{name}": value for prefix in ("", "ema.") for name, value in state.items()}
    torch.save({"state_dict": both, "config": config, "global_step": 7}, path)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a checkpoint. Not to be changed."""
    return _saved(tmp_path_factory.mktemp("checkpoint"), LABEL)


@pytest.fixture(scope="session")
def vocoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is told its mel, 8 bands, as a checkpoint. Not to be changed."""
    return _saved(tmp_path_factory.mktemp("vocoder"), MEL)


@pytest.fixture(scope="session")
def clips() -> Tensor:
    """Two clips, ``[2, 1, 1024]``, peaks of 0.9."""
    noise = torch.randn(2, 1, LENGTH, generator=torch.Generator().manual_seed(5))
    smooth = torch.nn.functional.avg_pool1d(noise, 5, stride=1, padding=2)
    return 0.9 * smooth / smooth.abs().amax(2, keepdim=True)
