"""Checkpoint file -> something that generates: network, process and configuration, without Lightning and Hydra."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_diffusion.targets import ConfigError, build
from audio_diffusion.use.generator import Generator

#: a configuration inside a checkpoint may name these and nothing else: loading a file must not run foreign code
TRUSTED = ("audio_diffusion.models.", "audio_diffusion.diffusion.")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name, step_<step>.ckpt; -1 where there is none."""
    match = re.fullmatch(r"step_(\d+)\.ckpt", path.name)
    return int(match[1]) if match else -1


def in_run(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run's folder, by step."""
    return sorted((p for p in Path(run_dir, "checkpoints").glob("step_*.ckpt") if step_of(p) >= 0), key=step_of)


def find(ckpt: str) -> Path:
    """The checkpoint file that ``ckpt`` names: itself, or the newest of a run's folder.

    Raises:
        ConfigError: if it is a folder without a checkpoint.
    """
    if not Path(ckpt).is_dir():
        return Path(ckpt)
    found = in_run(ckpt)
    if not found:
        raise ConfigError(f"ckpt: the folder {ckpt!r} holds no checkpoints/step_*.ckpt")
    return found[-1]


def _trusted(node: Any) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(TRUSTED):
            raise ConfigError(
                f"checkpoint: its configuration names {target!r}; only {' and '.join(TRUSTED)}* are loaded from a file"
            )
        for value in node.values():
            _trusted(value)
    elif isinstance(node, list):
        for value in node:
            _trusted(value)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, plain data only: no code in it is run.

    Raises:
        ConfigError: if there is no such file, or it is not a checkpoint of this project.
    """
    if not Path(path).is_file():
        raise ConfigError(f"ckpt: expected a checkpoint file, but {str(path)!r} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"ckpt: {str(path)!r} cannot be read as plain data: {reason}") from error
    if not isinstance(content, dict) or not {"state_dict", "config", "global_step"} <= content.keys():
        raise ConfigError(f"ckpt: {str(path)!r} was not written by this project's training")
    return content


def load(path: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu") -> Generator:
    """Loads a checkpoint for generating.

    Args:
        path: checkpoint file.
        weights: "ema" (averaged, what one listens to) or "raw".
        device: where the network is put.

    Raises:
        ConfigError: if the file cannot be used, or ``weights`` is neither.
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f'weights: expected "ema" or "raw", got {weights!r}')
    content = read(path)
    prefix = "ema.net." if weights == "ema" else "net."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    return assemble(content["config"], state, content["global_step"], weights, device, Path(path))


def assemble(
    config: dict[str, Any], state: dict[str, Tensor], step: int, weights: str, device: torch.device | str, source: Path
) -> Generator:
    """The generator of a run's configuration and its network's weights, of which no foreign code is run.

    Raises:
        ConfigError: if the configuration names what is not of this project.
    """
    parts = {name: config[name] for name in ("model", "representation", "diffusion", "sampler")}
    _trusted(parts)
    net = build(parts["model"], "model")
    net.load_state_dict(state)
    return Generator(
        net=net.to(device).eval().requires_grad_(False),
        process=build(parts["diffusion"], "diffusion"),
        representation=build(parts["representation"], "representation"),
        sampler=build(parts["sampler"], "sampler"),
        config=config,
        step=step,
        weights=weights,
        source=source,
    )
