"""Converts the options of sample.py to samples, each with its seed, conditions and files, in batches."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_diffusion.checkpoints.files import record_of
from audio_diffusion.data.audio.reading import PACKED, AudioInfo, UnusableAudio, file_name
from audio_diffusion.data.audio.recording import probe, read_file
from audio_diffusion.data.shards.members import read_npy
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import ConfigError, nearest
from audio_diffusion.networks.conditions.mel import Mel

_NAMED = 5  # number of ignored files of a folder that are named


@dataclass
class Sample:
    """One requested sample."""

    index: int
    seed: int
    label: str | None = None
    cond: dict[str, Any] = field(default_factory=dict)  # by name; files are read already
    written_cond: dict[str, Any] = field(default_factory=dict)  # as written, for the record
    files: tuple["Input", ...] = ()  # the inputs

    @property
    def name(self) -> str:
        """The name of its file: from its input, its label, or the first words of its conditions."""
        words = next((value for value in self.cond.values() if isinstance(value, str)), "")
        return file_name("_".join(file.path.stem for file in self.files) or self.label or words)


@dataclass
class Input:
    """An input file to edit."""

    path: Path
    info: AudioInfo | None  # None for a mel spectrogram
    clip: Tensor  # [C, T] at the model's sample rate, or [C·n_mels, F] for a mel spectrogram
    converted: str = ""  # description of the conversion, empty if there was none
    clipped: Tensor | None = None  # bool [C, T], task=declip: samples of the clip at places where the file is clipped
    note: str = ""  # a remark about the file for the user

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, computed once for all samples made from it."""
        return record_of(self.path).sha256


def _paths(given: str | Sequence[str], extensions: Sequence[str]) -> list[Path]:
    """The named files; for a folder, the files in it that have one of these extensions or contain audio anyway."""
    found: list[Path] = []
    for name in [given] if isinstance(given, str) else given:
        path = Path(name)
        found += _inside(path, extensions) if path.is_dir() else [path]
    if not found:
        raise ConfigError("input: expected a file, a list of them, or a folder, got none")
    return found


def _inside(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """The audio files of a folder. Other files are reported; hidden files are ignored.

    Raises:
        ConfigError: if there is no audio file.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    inside = [p for p in files if p.suffix[1:].lower() in extensions or _is_audio(p)]
    others = [p.name for p in files if p not in inside]
    if not inside:
        such = f", only {_some(others)}" if others else ""
        raise ConfigError(f"input: the folder {str(folder)!r} holds none of {', '.join(extensions)}{such}")
    if others:
        warnings.warn(f"input: {str(folder)!r}: left out, as they hold no audio: {_some(others)}", stacklevel=2)
    return inside


def _some(names: Sequence[str]) -> str:
    """Formats the first few names and the number of the others."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _is_audio(path: Path) -> bool:
    """Whether a file without an extension of audio contains audio."""
    try:
        probe(path, exact=False)
    except (OSError, ValueError, UnusableAudio):
        return False
    return True


def _read_mel(path: Path, mel: Mel) -> Tensor:
    """Reads a mel spectrogram from a .npy file, ``[C·n_mels, F]``.

    Raises:
        ValueError: if the file contains anything else.
    """
    frames = torch.from_numpy(read_npy(path.read_bytes()))
    if frames.ndim != 2 or frames.shape[0] != mel.num_rows or not frames.numel():
        raise ValueError(f"expected ln magnitudes [{mel.num_rows}, frames], got {list(frames.shape)}")
    return frames


def _clipped(path: Path, info: AudioInfo, clip: Tensor, sample_rate: int, level: float | None) -> tuple[Tensor, str]:
    """Finds the clipped samples of a file: a bool mask of the clip's shape ``[C, T]``, and a note about them.

    The search uses the file at its own sample rate: after resampling, clipped samples are no longer at one level.
    Without ``level`` the clip level is the file's peak, to a 16-bit step, and at least two consecutive samples must be
    at it.

    Raises:
        ValueError: if no sample is at the level, or, without ``level``, no two consecutive ones are.
    """
    own = read_file(path, info.sample_rate, info.channels).abs()
    least = max(own.max().item() - 1.5 / 2**15, 1e-9) if level is None else level
    at = own >= least
    if level is None and not (at[:, 1:] & at[:, :-1]).any():
        raise ValueError(
            f"it is not clipped: {int(at.sum())} of {at.numel()} samples are at its peak of {own.max().item():.4f}, "
            "none beside another; level=MAGNITUDE chooses a lower one"
        )
    if not at.any():
        raise ValueError(f"none of its samples is at level={level:g} or above; its peak is {own.max().item():.4f}")
    share = at.float().mean().item()
    note = f"{int(at.sum())} of {at.numel()} samples ({100 * share:.2g} %) are at the clip level {least:.4f} or above"
    if len(at) != len(clip):
        at = at.any(0, keepdim=True).expand(len(clip), -1)
    return _at_rate(at, clip.shape[1], info.sample_rate, sample_rate), note


def _at_rate(mask: Tensor, length: int, from_rate: int, to_rate: int) -> Tensor:
    """Converts a mask ``[C, T]`` to another sample rate: True at each sample next to one where the mask is True."""
    if from_rate == to_rate:
        return mask[:, :length]
    place, last = torch.arange(length, dtype=torch.float64) * from_rate / to_rate, mask.shape[1] - 1
    out = mask[:, place.floor().long().clamp(max=last)] | mask[:, place.ceil().long().clamp(max=last)]
    channel, position = mask.nonzero(as_tuple=True)
    exact = position.double() * to_rate / from_rate
    for near in (exact.floor(), exact.ceil()):
        out[channel, near.long().clamp(max=length - 1)] = True
    return out


def read_inputs(
    model: Model,
    given: str | Sequence[str],
    mel: Mel | None = None,
    *,
    declip: bool = False,
    level: float | None = None,
) -> list[Input]:
    """Reads the files to edit, converted to the model's sample rate and channels.

    For a vocoder, whose ``mel`` is given, files may also be spectrograms (.npy). With ``declip`` the clipped samples
    are found as well, at ``level`` or at the peak of each file.

    Raises:
        ConfigError: for a file that cannot be read or converted.
    """
    inputs = []
    for path in _paths(given, (*PACKED, "npy") if mel else PACKED):
        try:
            if mel and path.suffix == ".npy":
                inputs.append(Input(path, None, _read_mel(path, mel)))
                continue
            info = probe(path)
            clip = read_file(path, model.sample_rate, model.channels)
            clipped, note = _clipped(path, info, clip, model.sample_rate, level) if declip else (None, "")
        except (OSError, ValueError, UnusableAudio) as error:
            raise ConfigError(f"input: {str(path)!r} cannot be used: {error}") from error
        changes = []
        if info.sample_rate != model.sample_rate:
            changes.append(f"resampled from {info.sample_rate} to {model.sample_rate} Hz")
        if info.channels != model.channels:
            changes.append(f"of {info.channels} channels made {model.channels}")
        inputs.append(Input(path, info, clip, ", ".join(changes), clipped, note))
    return inputs


def _labels(model: Model, labels: list[str] | None, num: int, needed: bool) -> list[str | None]:
    """The label of every sample, taking the given labels in turn.

    Without labels, all classes are taken in turn if a label is ``needed`` and is the model's only condition.
    """
    if labels and not model.classes:
        raise ConfigError(f"labels: got {labels}, but this model takes none")
    for label in labels or []:
        if label not in model.classes:
            raise ConfigError(f"label {label!r} is unknown to this model.{nearest(label, model.classes)}")
    alone = needed and set(model.conditions.by_name) == {"label"}
    names = labels or (model.classes if alone else None)
    return [names[i % len(names)] if names else None for i in range(num)]


def _value(model: Model, name: str, value: Any, num_samples: int) -> Any:
    """Converts a condition's value from the command line: reads files of audio or .npy; words and numbers stay."""
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
    """The conditions of every sample, as written on the command line; each name's values are taken in turn."""
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


def _of_one_length(first: Input, second: Input, sample_rate: int) -> tuple[Input, Input]:
    """Pads the shorter of two files to interpolate between with silence to the length of the longer one."""
    length = max(first.clip.shape[1], second.clip.shape[1])
    padded = []
    for file, other in ((first, second), (second, first)):
        missing = length - file.clip.shape[1]
        if missing:
            note = f"{missing / sample_rate:.3g} s of silence added at its end, to be as long as {other.path}"
            file = replace(file, clip=F.pad(file.clip, (0, missing)), note=note)
        padded.append(file)
    return padded[0], padded[1]


def samples(model: Model, options: dict[str, Any]) -> list[Sample]:
    """Returns all samples that the options of sample.py request.

    Raises:
        ConfigError: for labels, conditions or files that cannot be used.
    """
    mel = model.mel[1] if options["task"] == "vocode" else None
    look = {"declip": True, "level": options["level"]} if options["task"] == "declip" else {}
    inputs = read_inputs(model, options["input"], mel, **look) if "input" in options else []
    of_files: list[tuple[Input, ...]] = [(file,) for file in inputs]
    if options["task"] == "interpolate":
        if len(inputs) < 2:
            raise ConfigError(f"input: expected two files or more to go between, got {len(inputs)}")
        of_files = [_of_one_length(first, second, model.sample_rate) for first, second in pairwise(inputs)]
    num = options["num_samples"] or len(of_files)
    if num < 1:
        raise ConfigError(f"num_samples: expected at least 1, got {num}")
    # length of audio conditions: that of the result, which for input files is their own length
    length = round((options.get("seconds") or 0) * model.sample_rate) if not inputs else 0
    length = length or (inputs[0].clip.shape[1] if inputs else model.num_samples)
    labels = _labels(model, options["labels"], num, needed=not inputs)
    conds = _conds(options["cond"], num)
    read: dict[tuple[str, str], Any] = {}
    result = []
    for i, (label, written) in enumerate(zip(labels, conds, strict=True)):
        for name, value in written.items():
            if (name, str(value)) not in read:
                read[name, str(value)] = _value(model, name, value, length)
        cond = {name: read[name, str(value)] for name, value in written.items()}
        files = of_files[i % len(of_files)] if of_files else ()
        result.append(Sample(i, seed_of(options["seed"], "sample", i), label, cond, written, files))
    return result


def batches(requests: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Groups samples into batches, in order: all clips of one batch have the same length."""
    for _, alike in groupby(requests, lambda sample: [file.clip.shape for file in sample.files]):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def together(conds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collates the conditions of a batch by name; those read from files become one tensor."""
    columns = {name: [cond[name] for cond in conds] for name in conds[0]}
    return {name: torch.stack(v) if isinstance(v[0], Tensor) else v for name, v in columns.items()}


def guidance_of(model: Model, options: dict[str, Any], weak: Model | None) -> Guidance:
    """Builds the guidance that the options describe.

    Raises:
        ConfigError: for a negative label that the model does not have, or a weak model with other classes or diffusion.
    """
    if weak and (weak.classes, weak.config["diffusion"]) != (model.classes, model.config["diffusion"]):
        raise ConfigError("weak_ckpt: expected a model of the same classes and diffusion as ckpt's")
    scale = options["guidance_scale"]
    low, high = options["guidance_interval"]
    return Guidance(
        scale=model.guidance_scale if scale is None else scale,
        interval=(low, high),
        rescale=options["guidance_rescale"],
        negative=None if options["negative"] is None else _negative(model, options["negative"]),
        weak=weak.net if weak else None,
        clip=options["clip"],
        clip_quantile=options["clip_quantile"],
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
        raise ConfigError(f"negative: {negative!r} is no label of this model.{nearest(negative, model.classes)}")
    return {name: value for name, value in model.conditions.given(given, 1, model.device).items() if name in given}
