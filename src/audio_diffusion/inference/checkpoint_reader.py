"""Loads a generator (network, process and configuration) from a checkpoint, without Lightning and Hydra."""

import logging
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_diffusion.checkpoints.folder import manifest_of, newest_verified, path_of, problem_of, step_of
from audio_diffusion.checkpoints.redaction import INSTEAD, find_redacted, with_instead
from audio_diffusion.data.training_data import CropFormat, TrainingData
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.origin import Origin
from audio_diffusion.inference.targets import ConfigError, build, with_moved
from audio_diffusion.networks.network import check_network
from audio_diffusion.representations.representation import check_representation

log = logging.getLogger(__name__)

#: prefixes of the only targets that a checkpoint's configuration may name: loading a file must not run foreign code
TRUSTED = ("audio_diffusion.networks.", "audio_diffusion.representations.", "audio_diffusion.diffusion.")

#: sections of a run's configuration that a model is built from
_PARTS = ("model", "representation", "diffusion", "sampler")


def find(ckpt: str) -> Path:
    """Finds the checkpoint for ``ckpt``: a file itself, or the newest verified one in a run's or checkpoint folder.

    Raises:
        ConfigError: if it is a folder without a valid checkpoint, or a file that does not match its manifest.
    """
    path = Path(ckpt)
    if path.is_dir() and not manifest_of(path).is_file():
        newest = newest_in(path) or newest_in(path, "")
        if newest is None:
            raise ConfigError(f"ckpt: the folder {ckpt!r} contains no checkpoints/step_*.ckpt")
        return newest
    if path.suffix == ".json" and path.with_suffix(".ckpt").exists():
        raise ConfigError(f"ckpt: {ckpt!r} is the manifest of a checkpoint; use ckpt={path.with_suffix('.ckpt')}")
    if manifest_of(path).is_file():
        if problem := problem_of(path):
            raise ConfigError(f"ckpt: {problem}. Leave out the file's name to use the run's newest valid checkpoint")
    elif path.is_file():
        log.warning(f"{ckpt}: there is no manifest beside it, so it could not be verified")
    return path


def newest_in(run_dir: str | Path, inside: str = "checkpoints") -> Path | None:
    """Finds the newest verified checkpoint of a run and logs each one that is skipped; None if there is none.

    Args:
        run_dir: the run's folder.
        inside: the folder of checkpoints inside the run's folder.

    Raises:
        ConfigError: if there are checkpoints but none is valid.
    """
    choice = newest_verified(Path(run_dir, inside))
    if choice.path is None and choice.problems:
        listed = "\n       ".join(choice.problems)
        raise ConfigError(
            f"ckpt: {run_dir} contains checkpoints, but none of them is valid:\n       {listed}\n       "
            "ckpt=FILE loads one without a manifest; to start again, choose another name= or remove them"
        )
    for line in choice.lines():
        log.warning(line)
    return choice.path


def device_of(name: str) -> torch.device:
    """Returns the device for the option ``device``; "auto" is a GPU (CUDA, or mps on Apple silicon) if there is one.

    Raises:
        ConfigError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ConfigError(
            f"device: expected auto, cpu, cuda, cuda:1 .., got {name!r}, which this machine does not have"
        ) from error
    return device


def _check_targets(node: Any, trust: Sequence[str]) -> None:
    """Checks that a configuration from a file names only code of trusted packages.

    Raises:
        ConfigError: if not; the message names the target and explains how to trust its package.
    """
    if isinstance(node, dict):
        target = str(node.get("_target_", TRUSTED[0]))
        if not target.startswith((*TRUSTED, *(f"{package}." for package in trust))):
            package = target.partition(".")[0]
            raise ConfigError(
                f"ckpt: its configuration names {target!r}, and loading a file runs only networks, representations and "
                f"samplers of audio_diffusion. If you trust that code, name its package: 'trust=[{package}]' (in "
                f"Python: load(.., trust=[{package!r}]))"
            )
        for value in node.values():
            _check_targets(value, trust)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value, trust)


def _why_unreadable(path: Path, error: Exception) -> str:
    """Describes why ``torch.load`` failed, without its advice to load the file with ``weights_only=False``."""
    if path.is_file() and not zipfile.is_zipfile(path):
        return "it is not a checkpoint, which torch.save writes"
    if isinstance(error, pickle.UnpicklingError) and not path.is_dir():
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it holds {named[1] if named else 'more than tensors, numbers and words'}, which could run code"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _read_shards(folder: Path) -> dict[str, Any]:
    from audio_diffusion.checkpoints import sharded  # not at the top: importing it takes long, and few have shards

    return sharded.read(folder)


def read(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint's content as plain data, without running any code in it.

    Raises:
        ConfigError: if the file does not exist, is not a checkpoint of this project, or is named after another step.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"ckpt: expected a checkpoint file, but {str(path)!r} does not exist")
    try:
        content = _read_shards(path) if path.is_dir() else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"ckpt: {str(path)!r} cannot be read as plain data: {_why_unreadable(path, error)}"
        ) from error
    needed = {"state_dict", "config", "global_step"}
    if not isinstance(content, dict) or not needed <= content.keys() or not isinstance(content["config"], dict):
        raise ConfigError(f"ckpt: {str(path)!r} was not written by this project's training")
    if step_of(path) not in (-1, content["global_step"]):
        name = path_of(path.parent, content["global_step"]).name
        raise ConfigError(f"ckpt: {str(path)!r} is the checkpoint of step {content['global_step']}: call it {name}")
    return {**content, "config": with_moved(content["config"])}


@dataclass
class Weights:
    """A trained network's weights, before the network is built.

    Args:
        state: tensors by name.
        config: the run's configuration, plain data.
        step: optimizer step of the checkpoint.
        kind: "ema" (averaged) or "raw".
        source: the file or folder that the weights were read from.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    step: int
    kind: str
    source: Path


def read_weights(path: str | Path, weights: str = "ema") -> Weights:
    """Reads the weights of a checkpoint.

    Raises:
        ConfigError: if the file cannot be used, or ``weights`` is neither "ema" nor "raw".
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f'weights: expected "ema" or "raw", got {weights!r}')
    content = read(path)
    prefix = "ema.net." if weights == "ema" else "net."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    return Weights(state, content["config"], content["global_step"], weights, Path(path))


def _completed(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """Restores values that older versions redacted by mistake, in the model's sections and the locations of the data.

    Raises:
        ConfigError: if a redacted value of the model's sections is not known.
    """
    completed = {**config, **{name: with_instead(config[name]) for name in _PARTS}}
    if isinstance(config.get("data"), dict):
        data = config["data"]
        completed["data"] = {**data, **{name: with_instead(data[name]) for name in ("train", "val") if name in data}}
    missing = {place: value for name in _PARTS for place, value in find_redacted(completed[name], name).items()}
    if missing:
        listed = ", ".join(f"{place} = {value!r}" for place, value in missing.items())
        raise ConfigError(
            f"ckpt: {str(source)!r} was written by an older version, which took part of this for a secret: {listed}. "
            f"Say what stood in place of REDACTED, most often the folder that train.py was started in: "
            f"{INSTEAD}=FOLDER before the command"
        )
    return completed


def assemble(has: Weights, device: torch.device | str, trust: Sequence[str] = ()) -> Model:
    """Builds a generator from a network's weights and the run's configuration.

    Raises:
        ConfigError: if the configuration names code that is neither of this project nor of a package in ``trust``, a
            part does not keep its contract, or the weights do not fit the network.
    """
    config = _completed(has.config, has.source)
    parts = {name: config[name] for name in _PARTS}
    _check_targets(parts, trust)
    net, representation = build(parts["model"], "model"), build(parts["representation"], "representation")
    try:
        check_network(net)
        check_representation(representation)
        net.load_state_dict(has.state)
    except RuntimeError as error:
        raise ConfigError(f"ckpt: {str(has.source)!r} has other weights than its network: {error}") from error
    except ValueError as error:
        raise ConfigError(f"ckpt: {str(has.source)!r}: {error}") from error
    return Model(
        net=net.to(device).eval().requires_grad_(False),
        process=build(parts["diffusion"], "diffusion"),
        representation=representation,
        sampler=build(parts["sampler"], "sampler"),
        crop=CropFormat(*(config["audio"][name] for name in ("sample_rate", "channels", "num_samples"))),
        guidance_scale=config.get("guidance_scale", 1.0) if net.conditions.by_name else 1.0,
        origin=Origin(
            name=config["name"],
            step=has.step,
            weights=has.kind,
            source=has.source,
            classes=config["classes"] or [],
            nodes=parts,
            data=_training_data(config.get("data")),
        ),
    )


def _training_data(node: dict[str, Any] | None) -> TrainingData | None:
    """Returns the locations of the data in a run's configuration."""
    if not node:
        return None
    reading = node.get("reading") or node
    return TrainingData(
        train=node["train"],
        val=node["val"],
        fields=tuple(reading.get("fields") or ()),
        audio_member=reading.get("audio_member"),
        storage_options=(node.get("store") or {}).get("storage_options"),
    )
