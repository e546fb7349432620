"""Exports a model as a folder that can be archived, shared or uploaded to a hub.

model.safetensors   the network's weights, in the floating-point type of training
config.json         the configuration of the model, plain data; no code in it is run
README.md           a model card, whose license the user fills in
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from audio_diffusion import __version__
from audio_diffusion.inference import checkpoint_reader
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import ConfigError, with_moved

HUB = "hub:"
FILES = ("model.safetensors", "config.json", "README.md")


def _config(model: Model) -> dict[str, Any]:
    """Returns the configuration from which a model is loaded, without the locations of the data."""
    return {
        "name": model.origin.name,
        "audio": asdict(model.crop),
        "classes": model.origin.classes,
        **model.origin.nodes,
        "guidance_scale": model.guidance_scale,
    }


def export(model: Model, folder: str | Path) -> Path:
    """Writes a model as a folder that ``audio_diffusion.load`` accepts; returns the folder.

    Raises:
        ConfigError: if the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output: {str(folder)!r} exists and is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.net.state_dict().items()}
    save_file(state, folder / FILES[0], metadata={"format": "pt"})
    (folder / FILES[0]).chmod(0o644)  # safetensors creates a file that only its owner can read
    about = {"audio_diffusion": __version__, "step": model.step, "weights": model.weights}
    (folder / FILES[1]).write_text(json.dumps({**about, "config": _config(model)}, indent=1), encoding="utf-8")
    (folder / FILES[2]).write_text(_card(model), encoding="utf-8")
    return folder


def _card(model: Model) -> str:
    """Returns the model card."""
    crop = model.crop
    parameters = sum(p.numel() for p in model.net.parameters())
    labels = f'["{model.classes[0]}"]' if model.classes else None
    return f"""---
license: other  # fill in: of these weights, which may depend on that of the data
library_name: audio_diffusion
tags: [audio, diffusion, audio-generation]
---

# {model.origin.name}

A diffusion model of audio: {crop.num_samples / crop.sample_rate:g} s of {crop.channels} channel(s) at \
{crop.sample_rate} Hz, {parameters / 1e6:.2f} M parameters, {model.weights.upper()} weights of step {model.step}.

Labels: {", ".join(model.classes) or "none"}. Conditions: {", ".join(model.conditions.by_name) or "none"}.

    import audio_diffusion
    model = audio_diffusion.load("FOLDER")                        # or "hub:USER/NAME"
    audio = model.generate(seeds=[0], labels={labels})            # [1, {crop.channels}, T]

Trained on: fill in. Intended use, and what it should not be used for: fill in.
"""


def is_exported(folder: Path) -> bool:
    """Whether ``export`` wrote this folder.

    Raises:
        ConfigError: if exactly one of the model's two files is missing, and there is no checkpoint in the folder.
    """
    missing = [name for name in FILES[:2] if not (folder / name).is_file()]
    if len(missing) == 1 and not (folder / "checkpoints").exists() and not any(folder.glob("*.ckpt")):
        raise ConfigError(
            f"ckpt: the folder {str(folder)!r} looks like an exported model, but {missing[0]} is missing: copy it as "
            "well, or export the model again"
        )
    return not missing


def read_weights(folder: Path, weights: str = "ema") -> checkpoint_reader.Weights:
    """Reads the weights of an exported folder.

    Raises:
        ConfigError: if its files are broken, or contain the other kind of weights.
    """
    try:
        about = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
        config, step, has = with_moved(about["config"]), about["step"], about["weights"]
        state = load_file(folder / FILES[0])
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ConfigError(f"ckpt: {str(folder)!r} cannot be read as an exported model: {error}") from error
    if weights != has:
        raise ConfigError(f"weights: {str(folder)!r} was exported with {has} weights, got {weights!r}")
    return checkpoint_reader.Weights(state, config, step, has, folder)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("hub: needs the package huggingface_hub: pip install -e '.[hub]'") from error
    return huggingface_hub


def push(folder: str | Path, name: str, *, private: bool = True) -> str:
    """Uploads an exported folder to the hub as USER/NAME, creating the repository if needed; returns its address.

    Raises:
        ConfigError: if it is not an exported folder, or huggingface_hub is not installed.
    """
    if not is_exported(Path(folder)):
        raise ConfigError(
            f"folder: expected one that export wrote, with {FILES[0]} and {FILES[1]}, got {str(folder)!r}"
        )
    api = _hub().HfApi()
    name = name.removeprefix(HUB)
    api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=list(FILES))
    return f"{HUB}{name}"


def pull(name: str) -> Path:
    """Returns the local folder of ``hub:USER/NAME``, downloading files that have changed.

    Raises:
        ConfigError: if huggingface_hub is not installed.
    """
    return Path(_hub().snapshot_download(name.removeprefix(HUB), allow_patterns=list(FILES)))
