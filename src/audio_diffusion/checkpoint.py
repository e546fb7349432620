"""Checkpoint file -> something that generates: network, process and configuration, without Lightning."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audio_diffusion.config import ConfigError, build, nearest
from audio_diffusion.diffusion.generation import Sampler, generate
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.models.conditions import Conditions, Values
from audio_diffusion.models.representations import Waveform
from audio_diffusion.saving import sharded
from audio_diffusion.saving.folder import manifest_of, newest_verified, problem_of

log = logging.getLogger(__name__)

#: a configuration inside a checkpoint may name these and nothing else: loading a file must not run foreign code
TRUSTED = ("audio_diffusion.models.", "audio_diffusion.diffusion.")


def find(ckpt: str) -> Path:
    """The checkpoint that ``ckpt`` names: itself, or the newest verified one of a run's folder.

    Raises:
        ConfigError: if it is a folder without a good checkpoint, or a file that is not what its manifest says.
    """
    path = Path(ckpt)
    if path.is_dir() and not manifest_of(path).is_file():
        newest = newest_in(path)
        if newest is None:
            raise ConfigError(f"ckpt: the folder {ckpt!r} holds no checkpoints/step_*.ckpt")
        return newest
    if manifest_of(path).is_file():
        if problem := problem_of(path):
            raise ConfigError(f"ckpt: {problem}. Leave out the file's name to take the run's newest good one")
    elif path.is_file():
        log.warning(f"{ckpt}: there is no manifest beside it, so it could not be verified")
    return path


def newest_in(run_dir: str | Path) -> Path | None:
    """The newest verified checkpoint of a run, and a line in the log for each that is passed over; None if it has none.

    Raises:
        ConfigError: if there are some and none is good.
    """
    choice = newest_verified(Path(run_dir, "checkpoints"))
    if choice.path is None and choice.problems:
        listed = "\n       ".join(choice.problems)
        raise ConfigError(
            f"ckpt: {run_dir} holds checkpoints, and none of them is good:\n       {listed}\n       "
            "ckpt=FILE takes one that has no manifest as it is; to start anew, choose another name= or remove them"
        )
    for line in choice.lines():
        log.warning(line)
    return choice.path


def device_of(name: str) -> torch.device:
    """The device that the option ``device`` names; "auto" is a GPU if there is one.

    Raises:
        ConfigError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ConfigError(
            f"device: expected auto, cpu, cuda, cuda:1 .., got {name!r}, which this machine does not have"
        ) from error
    return device


@dataclass
class Generator:
    """A trained model, ready to generate. Made by ``load``."""

    net: nn.Module
    process: Diffusion
    representation: Waveform
    sampler: Sampler
    config: dict[str, Any]
    step: int
    weights: str

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config["audio"]["sample_rate"]

    @property
    def conditions(self) -> Conditions:
        """What the model is told."""
        assert isinstance(self.net.conditions, Conditions)
        return self.net.conditions

    @property
    def classes(self) -> list[str]:
        """Class names; empty for a model that takes no label."""
        return self.config["classes"] if "label" in self.conditions.by_name else []

    @property
    def guidance_scale(self) -> float:
        """What the model was sampled with while it was trained; 1, no guidance, where that is not known."""
        listened = (self.config["callbacks"].get("sampling") or {}).get("guidance_scale", 1.0)
        return listened if self.conditions.by_name else 1.0

    def generate(
        self,
        seeds: Sequence[int],
        labels: Sequence[str] | None = None,
        *,
        cond: Mapping[str, Values | Sequence[float]] | None = None,
        guidance_scale: float | None = None,
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Audio ``[B, C, T]``, one clip per seed; clip i depends on ``seeds[i]`` and its own conditions alone.

        Args:
            seeds: one a clip.
            labels: class names, one a clip; a model that is told nothing else needs them.
            cond: other conditions by name, B values each: words, numbers (NaN: "not given"), embeddings
                ``[B, ..]``, audio ``[B, C, T]`` for a mel. What is left out is "not given".
            guidance_scale: classifier-free guidance, 1 is none; None is what was sampled with while training.
            guidance: all that can be said about guidance, in place of ``guidance_scale``.
            sampler: None is the one the model was trained with.

        Raises:
            ValueError: for a label or a condition the model does not know, values that are none for it, or no labels
                where the model needs them.
        """
        given = dict(cond or {})
        if labels is not None:
            given["label"] = self._index(labels)
        elif set(self.conditions.by_name) == {"label"}:
            raise ValueError(f"labels: this model needs one per clip, of {', '.join(self.classes)}")
        device = next(self.net.parameters()).device
        audio = self.config["audio"]
        x0 = generate(
            self.net,
            self.process,
            sampler or self.sampler,
            self.representation.shape(audio["channels"], audio["num_samples"]),
            seeds,
            self.conditions.given(given, len(seeds), device),
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
            guidance=guidance,
            device=device,
        )
        return self.representation.decode(x0)

    def _index(self, labels: Sequence[str]) -> Tensor:
        """Class names -> their numbers."""
        if not self.classes:
            raise ValueError("labels: this model takes none")
        for label in labels:
            if label not in self.classes:
                raise ValueError(f"label {label!r} is unknown to this model.{nearest(label, self.classes)}")
        return torch.tensor([self.classes.index(label) for label in labels])


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
    if not Path(path).exists():
        raise ConfigError(f"ckpt: expected a checkpoint file, but {str(path)!r} does not exist")
    try:
        sharded_over_ranks = Path(path).is_dir()
        content = sharded.read(Path(path)) if sharded_over_ranks else torch.load(path, "cpu", weights_only=True)
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
    config = content["config"]
    parts = {name: config[name] for name in ("model", "representation", "diffusion", "sampler")}
    _trusted(parts)
    prefix = "ema.net." if weights == "ema" else "net."
    net = build(parts["model"], "model")
    state = content["state_dict"]
    net.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return Generator(
        net=net.to(device).eval().requires_grad_(False),
        process=build(parts["diffusion"], "diffusion"),
        representation=build(parts["representation"], "representation"),
        sampler=build(parts["sampler"], "sampler"),
        config=config,
        step=content["global_step"],
        weights=weights,
    )
