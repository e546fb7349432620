"""Converts the options of sample.py to samples, each with its seed, conditions and files, in batches."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_diffusion.cli.options import SampleOptions
from audio_diffusion.cli.samples import Sample, together
from audio_diffusion.cli.tasks.task import Task
from audio_diffusion.data.audio.reading import UnusableAudio
from audio_diffusion.data.audio.recording import read_file
from audio_diffusion.data.shards.members import read_npy
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import ConfigError, nearest


def _labels(model: Model, labels: list[str] | None, num: int, needed: bool) -> list[str | None]:
    """Returns the label of every sample, taking the given labels in turn.

    Without labels, all classes are taken in turn if a label is ``needed`` and is the model's only condition.
    """
    if labels and not model.classes:
        raise ConfigError(f"labels: got {labels}, but this model has no labels")
    for label in labels or []:
        if label not in model.classes:
            raise ConfigError(f"label {label!r} is unknown to this model.{nearest(label, model.classes)}")
    alone = needed and set(model.conditions.by_name) == {"label"}
    names = labels or (model.classes if alone else None)
    return [names[i % len(names)] if names else None for i in range(num)]


def _value(model: Model, name: str, value: Any, num_samples: int) -> Any:
    """Converts a condition's value from the command line: reads audio or .npy files, keeps text and numbers."""
    condition = model.conditions.by_name.get(name)
    try:
        if condition is not None and condition.field == "audio":
            audio = read_file(str(value), model.sample_rate, model.channels)
            out = torch.zeros(model.channels, num_samples)
            out[:, : audio.shape[1]] = audio[:, :num_samples]
            return out
        return torch.from_numpy(read_npy(Path(value).read_bytes())) if str(value).endswith(".npy") else value
    except (OSError, UnusableAudio) as error:
        raise ConfigError(f"cond.{name}: {str(value)!r} cannot be read: {error}") from error


def _conds(cond: dict[str, Any] | None, num: int) -> list[dict[str, Any]]:
    """Returns the conditions of every sample, as on the command line; each condition's values are taken in turn."""
    if cond and "label" in cond:
        raise ConfigError("cond.label: labels are given by name: labels=[..]")
    lists = {name: value if isinstance(value, list) else [value] for name, value in (cond or {}).items()}
    for name, values in lists.items():
        if not values:
            raise ConfigError(f"cond.{name}: expected a value or a list of them, got none")
        for value in values:
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"cond.{name}: expected a finite number, got {value}; leave it out for 'not given'")
    return [{name: values[i % len(values)] for name, values in lists.items()} for i in range(num)]


def samples(model: Model, options: SampleOptions, task: Task) -> list[Sample]:
    """Returns all samples that the options of sample.py request.

    Raises:
        ConfigError: for labels, conditions or files that cannot be used.
    """
    inputs = task.read(model, options.input) if options.input is not None else []
    num = options.num_samples or len(inputs)
    if num < 1:
        raise ConfigError(f"num_samples: expected at least 1, got {num}")
    length = task.num_samples(model, inputs)
    labels = _labels(model, options.labels, num, needed=not inputs)
    conds = _conds(options.cond, num)
    read: dict[tuple[str, str], Any] = {}
    result = []
    for i, (label, written) in enumerate(zip(labels, conds, strict=True)):
        for name, value in written.items():
            if (name, str(value)) not in read:
                read[name, str(value)] = _value(model, name, value, length)
        cond = {name: read[name, str(value)] for name, value in written.items()}
        files = inputs[i % len(inputs)] if inputs else ()
        result.append(Sample(i, seed_of(options.seed, "sample", i), label, cond, written, files))
    return result


def batches(requests: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Groups samples into batches, in order: all clips of one batch have the same length."""
    for _, alike in groupby(requests, lambda sample: [file.clip.shape for file in sample.files]):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def guidance_of(model: Model, options: SampleOptions, weak: Model | None) -> Guidance:
    """Builds the guidance that the options describe.

    Raises:
        ConfigError: for a negative label that the model does not have, or a weak model with other classes or diffusion.
    """
    if weak and (weak.classes, weak.origin.nodes["diffusion"]) != (model.classes, model.origin.nodes["diffusion"]):
        raise ConfigError("weak_ckpt: expected a model with the same classes and diffusion as ckpt")
    scale = options.guidance_scale
    low, high = options.guidance_interval
    return Guidance(
        scale=model.guidance_scale if scale is None else scale,
        interval=(low, high),
        rescale=options.guidance_rescale,
        negative=None if options.negative is None else _negative(model, options.negative),
        weak=weak.net if weak else None,
        clip=options.clip,
        clip_quantile=options.clip_quantile,
    )


def _negative(model: Model, negative: str | dict[str, Any]) -> dict[str, Tensor]:
    """Converts negative conditions, a class name or conditions by name, to tensors; one for all samples."""
    if isinstance(negative, dict):
        written = _conds(negative, 1)[0]
        cond = {name: _value(model, name, value, model.num_samples) for name, value in written.items()}
        given = together([cond])
    elif negative in model.classes:
        given = {"label": [model.classes.index(negative)]}
    else:
        raise ConfigError(f"negative: {negative!r} is not a label of this model.{nearest(negative, model.classes)}")
    return {name: value for name, value in model.conditions.given(given, 1, model.device).items() if name in given}
