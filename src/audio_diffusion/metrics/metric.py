"""The contract of a metric, which measures how good a model, or a folder of audio, is."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from audio_diffusion.diffusion.contracts import Member, check
from audio_diffusion.metrics.likelihood import Denoise, Schedule
from audio_diffusion.representations.representation import Representation

#: where clips come from: held-out or other real audio, the training data, the model (or the folder) that is evaluated
SOURCES = ("real", "train", "generated")


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        value: NaN if it could not be measured; ``note`` then has the reason.
        error: standard error, the expected deviation with another set of as many clips; NaN if unknown.
        interval: (low, high) of a 95 % interval; None if unknown.
        note: what a reader needs to know beside the number, such as the number of windows or the floor.
    """

    value: float
    error: float = math.nan
    interval: tuple[float, float] | None = None
    note: str = ""

    def __str__(self) -> str:
        """The number with its uncertainty: ``12.3 ± 0.4 [11.5, 13.1]``."""
        if math.isnan(self.value):
            return "-"
        error = "" if math.isnan(self.error) else f" ± {self.error:.2g}"
        interval = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        return f"{self.value:.4g}{error}{interval}"


@dataclass(frozen=True)
class Clips:
    """A batch of B clips.

    Attributes:
        audio: float32 ``[B, C, T]``, full scale ±1.
        mask: bool ``[B, 1, T]``, False on padding.
        names: of the clips, unique among those of one source.
        labels: class names; None for clips without a class.
        texts: descriptions of the clips, such as captions; empty if there are none.
        cond: the model's conditions of the clips, prepared for its network; empty for files.
    """

    audio: Tensor
    mask: Tensor
    names: Sequence[str]
    labels: Sequence[str | None]
    texts: Sequence[str] = ()
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.audio)


def unpadded(clips: Clips) -> list[Tensor]:
    """The clips without their padding, each ``[C, T]`` on the CPU; a clip that is all padding is left out."""
    lengths = clips.mask.sum(-1).flatten().tolist()
    return [audio[:, :length].cpu() for audio, length in zip(clips.audio, lengths, strict=True) if length]


@dataclass(frozen=True)
class EvaluatedModel:
    """The parts of a model that a metric may use.

    Attributes:
        denoiser: conditions -> denoise(x_t ``[B, D, L]``, t ``[B]``) -> (x0, noise).
        schedule: noise schedule.
        representation: conversion between audio and x0.
    """

    denoiser: Callable[[Mapping[str, Tensor]], Denoise]
    schedule: Schedule
    representation: Representation


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        sample_rate: of all clips, Hz.
        channels: number of channels C of all clips.
        classes: class names; empty without classes.
        seed: of all that a metric draws.
        model: None if a folder of audio is evaluated.
    """

    sample_rate: int
    channels: int
    classes: Sequence[str] = ()
    seed: int = 0
    model: EvaluatedModel | None = None


class Metric(Protocol):
    """Measures clips batch by batch. ``evaluate.py`` and training use the same ones.

    The smallest one, which compares levels::

        class Loudness(Metric):
            needs = ("real", "generated")

            def start(self, subject: Subject) -> None:
                self.rms = {"real": [], "generated": []}

            def update(self, clips: Clips, source: str) -> None:
                self.rms[source] += [audio.square().mean().sqrt().item() for audio in clips.audio]

            def compute(self) -> dict[str, Figure]:
                real, made = (statistics.mean(self.rms[source]) for source in self.needs)
                return {"level_difference_db": Figure(20 * math.log10(max(made, 1e-6) / max(real, 1e-6)))}

            def forget_generated(self) -> None:
                self.rms["generated"] = []

    A YAML in the group ``metrics``, ``loudness: {_target_: my_package.Loudness}``, makes it an option of
    ``evaluate.py``: ``metrics=[likelihood,loudness]``. A subclass of this class need not write ``details``,
    ``describe`` and ``draw``, nor ``forget_generated`` if it measures real clips alone.

    Attributes:
        needs: what ``update`` is called with, some of ``SOURCES``, in their order.
    """

    needs: tuple[str, ...]

    def start(self, subject: Subject) -> None:
        """Begins a measurement, and forgets an earlier one.

        Raises:
            ValueError: if the subject cannot be measured, such as a folder of audio where a model is needed.
        """
        ...

    def update(self, clips: Clips, source: str) -> None:
        """Adds a batch of clips of one source. May be interrupted (KeyboardInterrupt): it then adds nothing."""
        ...

    def compute(self) -> dict[str, Figure]:
        """Returns the figures of all clips so far, by name; NaN with a note for one that needs more clips."""
        ...

    def forget_generated(self) -> None:
        """Forgets the generated clips, before those of another sampler are measured; the real ones are kept."""

    def details(self) -> dict[str, Any]:
        """Returns more than the figures as plain data, for ``evaluation.json``."""
        return {}

    def describe(self) -> list[str]:
        """Returns the lines to print."""
        return [
            f"{name:30} {figure}{f'   {figure.note}' if figure.note else ''}" for name, figure in self.compute().items()
        ]

    def draw(self, folder: Path) -> dict[str, Path]:
        """Writes pictures into the folder; returns their paths by what they show."""
        return {}


_MEMBERS = {
    "needs": Member(f"needs: tuple[str, ..], some of {', '.join(SOURCES)}", tuple),
    "start": Member("start(subject: Subject) -> None", arguments=1),
    "update": Member("update(clips: Clips, source: str) -> None", arguments=2),
    "compute": Member("compute() -> dict[str, Figure]"),
    "forget_generated": Member("forget_generated() -> None (a subclass of Metric has it)"),
    "details": Member("details() -> dict[str, Any] (a subclass of Metric has it)"),
    "describe": Member("describe() -> list[str] (a subclass of Metric has it)"),
    "draw": Member("draw(folder: Path) -> dict[str, Path] (a subclass of Metric has it)", arguments=1),
}


def check_metric(metric: Any) -> None:
    """Checks that an object is a ``Metric``.

    Raises:
        ValueError: if it is not; the message names its class, the missing or wrong member and its declaration.
    """
    check(metric, "metric (audio_diffusion.metrics.metric)", _MEMBERS)
    name = f"{type(metric).__module__}.{type(metric).__qualname__}"
    if not metric.needs or not set(metric.needs) <= set(SOURCES):
        raise ValueError(f"{name}.needs: a metric needs {_MEMBERS['needs'].written}, got {metric.needs!r}")
    if "generated" in metric.needs and type(metric).forget_generated is Metric.forget_generated:
        raise ValueError(f"{name} has no forget_generated of its own, which a metric of generated clips needs")
