"""A trained model: its parts, conditions and guidance, without the methods that generate."""

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audio_diffusion.diffusion.generation import Sampler
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.inference.lengths import Length
from audio_diffusion.inference.targets import nearest
from audio_diffusion.networks.conditions.condition import Conditions, Values
from audio_diffusion.networks.conditions.mel import Mel
from audio_diffusion.representations.representation import Representation

Seeds = Sequence[int]
Labels = Sequence[str] | None
Given = Mapping[str, Values | Sequence[float]] | None


@dataclass(repr=False)
class Model(ABC):
    """Network, process and configuration of a checkpoint.

    Args:
        net: in eval mode.
        process: schedule and parameterization that it was trained with.
        representation: conversion between audio and x0.
        sampler: the sampler.
        config: the run's configuration, plain data.
        step: optimizer step of the checkpoint.
        weights: "ema" or "raw".
        source: the file or folder that it was loaded from.
        guidance: None for the guidance scale of the samples made during training.
    """

    net: nn.Module
    process: Diffusion
    representation: Representation
    sampler: Sampler
    config: dict[str, Any]
    step: int
    weights: str
    source: Path
    guidance: Guidance | None = None

    def __repr__(self) -> str:
        """One line with the network, the form of its audio, its conditions and its source."""
        parameters = sum(p.numel() for p in self.net.parameters()) / 1e6
        told = ", ".join(self.conditions.by_name) or "nothing"
        channels = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return (
            f"{type(self).__name__}({type(self.net).__name__} of {parameters:.2f} M parameters, {self.sample_rate} Hz "
            f"{channels}, {self.num_samples / self.sample_rate:.2f} s, conditions: {told}, step {self.step}, "
            f"{self.weights} weights, on {self.device}, from {self.source})"
        )

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio, Hz."""
        return self.config["audio"]["sample_rate"]

    @property
    def channels(self) -> int:
        """Number of channels C of the audio."""
        return self.config["audio"]["channels"]

    @property
    def num_samples(self) -> int:
        """Number of samples T that the network was trained on."""
        return self.config["audio"]["num_samples"]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.net.parameters()).device

    @property
    def conditions(self) -> Conditions:
        """The network's conditions."""
        return self.net.conditions  # type: ignore[return-value]

    @property
    def mel(self) -> tuple[str, Mel]:
        """The name of the mel condition, and the condition.

        Raises:
            ValueError: for a model without a mel condition.
        """
        for name, condition in self.conditions.by_name.items():
            if isinstance(condition, Mel):
                return name, condition
        raise ValueError(
            f"vocode: expected a model that is told its mel spectrogram (trained with condition=mel), this one is "
            f"told {', '.join(self.conditions.by_name) or 'nothing'}"
        )

    @property
    def classes(self) -> list[str]:
        """Class names; empty for a model without labels."""
        return self.config["classes"] if "label" in self.conditions.by_name else []

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the samples made during training; 1 (no guidance) if it is not known."""
        listened = (self.config["callbacks"].get("sampling") or {}).get("guidance_scale", 1.0)
        return listened if self.conditions.by_name else 1.0

    def _told(self, num: int, labels: Labels, cond: Given) -> dict[str, Tensor]:
        """Converts labels and other conditions of ``num`` clips to the network's tensors, by name."""
        given = dict(cond or {})
        if labels is not None:
            given["label"] = self._index(labels)
        return self.conditions.given(given, num, self.device)

    def _index(self, labels: Sequence[str]) -> Tensor:
        """Converts class names to class indices."""
        if not self.classes:
            raise ValueError("labels: this model takes none")
        for label in labels:
            if label not in self.classes:
                raise ValueError(f"label {label!r} is unknown to this model.{nearest(label, self.classes)}")
        return torch.tensor([self.classes.index(label) for label in labels])

    def _guided(self, length: Length, told: bool) -> Guidance:
        """The guidance for signals of a length. Without conditions its scale is 1, which saves network calls."""
        guidance = self.guidance or Guidance(self.guidance_scale)
        if guidance.weak is not None:
            return replace(guidance, weak=self._net(length, guidance.weak))
        return guidance if told or guidance.negative is not None else replace(guidance, scale=1.0)

    def _net(self, length: Length, net: Net | None = None) -> Net:
        """Adapts a network (default: this model's) to signals of a length."""
        return length.net(net or self.net, self.conditions.by_name, self.sample_rate)

    def _length(self, num_samples: int) -> Length:
        hops = [condition.hop for condition in self.conditions.by_name.values() if isinstance(condition, Mel)]
        return Length(num_samples, self.num_samples, self.representation.hop, max(hops, default=1))

    def _samples(self, name: str, seconds: float) -> int:
        """Converts seconds to a number of samples.

        Raises:
            ValueError: if ``seconds`` is not finite, or the number is not positive.
        """
        if not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise ValueError(f"{name}: expected a finite number of seconds, got {seconds}")
        if not round(seconds * self.sample_rate) > 0:
            raise ValueError(f"{name}: expected at least one sample, 1/{self.sample_rate} s, got {seconds}")
        return round(seconds * self.sample_rate)

    def _check(self, audio: Tensor, seeds: Seeds | None = None) -> None:
        """Raises ValueError for invalid audio for this model, or if the numbers of seeds and clips differ."""
        if audio.ndim != 3 or audio.shape[1] != self.channels or audio.shape[2] == 0 or not audio.is_floating_point():
            raise ValueError(
                f"audio: expected floats [B, {self.channels}, T] at {self.sample_rate} Hz (read(FILE) gives "
                f"them), got {audio.dtype} of {list(audio.shape)}"
            )
        if seeds is not None and len(seeds) != len(audio):
            raise ValueError(f"seeds: expected one for each of {len(audio)} clips, got {len(seeds)}")

    def _encode(self, audio: Tensor, length: Length) -> Tensor:
        """Audio -> x0 of the length that the network takes, on its device."""
        return self.representation.encode(length.pad(audio.to(self.device)))
