"""The root options of each program: names and types (door 2), and checks of their values.

This module does not import torch. The options of train.py are in ``cli.train_options``.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig

from audio_diffusion.cli.config import ConfigError, to_plain
from audio_diffusion.cli.train_options import check_root
from audio_diffusion.inference.targets import check_types


@dataclass(frozen=True)
class SampleOptions:
    """The root options of sample.py; ``task_options`` are those of the chosen task, by name."""

    task: str
    ckpt: str
    num_samples: int | None
    labels: list[str] | None
    cond: dict | None
    seed: int
    guidance_scale: float | None
    guidance_interval: list[float]
    guidance_rescale: float
    negative: str | dict | None
    weak_ckpt: str | None
    clip: float | None
    clip_quantile: float
    weights: str
    trust: list[str]
    batch_size: int
    device: str
    devices: int
    format: str
    output: str | None
    real: str | None
    sampler: dict | None = None
    input: str | list[str] | None = None
    task_options: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Returns the options as given, for the json that records how each file was made."""
        given = asdict(self)
        task_options = given.pop("task_options")
        return {name: value for name, value in given.items() if value is not None or name not in _ABSENT} | task_options


_ABSENT = ("sampler", "input")  # options of sample.py that some tasks or commands do not have


@dataclass(frozen=True)
class EvaluateOptions:
    """The root options of evaluate.py."""

    ckpt: str | None
    folder: str | None
    reference: str | None
    num_clips: int | None
    num_generated: int | None
    train: str | None
    num_train: int | None
    guidance_scale: float | None
    weights: str
    trust: list[str]
    batch_size: int
    seed: int
    device: str
    output: str | None
    sweep: dict[str, Any]
    ema_lengths: list[float] | None = None
    ema_monitor: str | None = None
    metrics: dict[str, Any] | None = None
    embedding: dict[str, Any] | None = None
    sampler: dict | None = None


@dataclass(frozen=True)
class ExportOptions:
    """The root options of export.py."""

    ckpt: str
    output: str
    weights: str
    trust: list[str]


@dataclass(frozen=True)
class ReportOptions:
    """The root options of the command report."""

    runs: str | list[str]
    output: str | None


@dataclass(frozen=True)
class PackOptions:
    """The root options of make_shards.py; for those from ``format`` to ``max_missing``, see ``packing.form.Form``."""

    input: str | None
    output: str | None
    verify: str | None
    manifest: str | None
    labels: str
    format: str
    sample_rate: int | None
    channels: int | None
    segment_s: float | None
    silence_db: float | None
    lufs: float | None
    max_missing: float
    val_fraction: float
    shard_mb: float
    num_workers: int | None
    store: dict[str, Any]


_OPTIONS: dict[str, Any] = {
    "sample": SampleOptions, "evaluate": EvaluateOptions, "export": ExportOptions, "make_shards": PackOptions,
    "report": ReportOptions,
}  # fmt: skip


def _types(program: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the types of the given root options of a program."""
    return {name: kind for name, kind in get_type_hints(_OPTIONS[program]).items() if name in given}


def _check_counts(options: dict[str, Any], *names: str) -> None:
    for name in names:
        if options[name] is not None and options[name] < 1:
            raise ConfigError(f"{name}: expected at least 1, got {options[name]}")


def _check_seed(options: dict[str, Any]) -> None:
    if options["seed"] < 0:
        raise ConfigError(f"seed: expected 0 or more, got {options['seed']}")


def _check_output(options: dict[str, Any]) -> None:
    if options["output"] and Path(options["output"]).exists() and not Path(options["output"]).is_dir():
        raise ConfigError(f"output: expected a folder, made if there is none, but {options['output']!r} is a file")


def _check_sample(options: dict[str, Any]) -> None:
    """Checks the values of the options of sample.py.

    Raises:
        ConfigError: naming the invalid option.
    """
    check_types(options, _types("sample", options))
    _check_counts(options, "num_samples", "batch_size")
    _check_output(options)
    _check_seed(options)
    if len(options["guidance_interval"]) != 2:
        raise ConfigError(f"guidance_interval: expected two times, [0, 1], got {options['guidance_interval']}")
    if options["format"] not in ("wav", "flac"):
        raise ConfigError(f"format: expected wav or flac, got {options['format']!r}")


_SWEEP = {"num_steps": list[int] | None, "sampler": list[str] | None, "guidance_scale": list[float] | None}


def _check_evaluate(options: dict[str, Any]) -> None:
    check_types(options, _types("evaluate", options))
    _check_counts(options, "num_clips", "num_generated", "num_train", "batch_size")
    _check_output(options)
    _check_seed(options)
    if (options["ckpt"] is None) == (options["folder"] is None):
        got = "neither" if options["ckpt"] is None else "both"
        raise ConfigError(f"ckpt: expected a model, ckpt=RUN, or a folder of audio, folder=AUDIO; got {got}")
    if options["folder"] is not None and not Path(options["folder"]).is_dir():
        what = "is not a folder" if Path(options["folder"]).exists() else "does not exist"
        raise ConfigError(f"folder: expected a folder of audio files, but {options['folder']!r} {what}")
    if options["folder"] is not None and options["reference"] is None:
        raise ConfigError("reference: expected shards or a folder of audio to compare folder with, got nothing")
    try:
        check_types(options["sweep"], _SWEEP)
    except ConfigError as error:
        raise ConfigError(f"sweep.{error}") from error
    if any(options["sweep"].values()) and options["folder"] is not None:
        raise ConfigError("sweep: expected a model, ckpt=RUN; a folder of audio has no sampler")
    if options["ema_lengths"] is not None and (options["folder"] is not None or any(options["sweep"].values())):
        raise ConfigError("ema_lengths: expected a run, ckpt=RUN, without a sweep of samplers")
    if options["ema_lengths"] is not None and not Path(options["ckpt"]).is_dir():
        raise ConfigError(f"ema_lengths: expected ckpt=RUN, the folder of a run with ema/, got {options['ckpt']!r}")
    if steps := [steps for steps in options["sweep"]["num_steps"] or () if steps < 1]:
        raise ConfigError(f"sweep.num_steps: expected at least 1, got {steps[0]}")


def _check_make_shards(options: dict[str, Any]) -> None:
    """Raises ConfigError for values of the wrong kind."""
    for name in ("input", "output", "verify", "manifest"):
        if options[name] is not None and not str(options[name]).strip():
            what = "a csv or jsonl" if name == "manifest" else "a folder or a URL"
            raise ConfigError(f"{name}: expected {what}, got nothing")
    if options["labels"] not in ("folder", "none"):
        raise ConfigError(f"labels: expected folder or none, got {options['labels']!r}")
    for name, kind in _types("make_shards", options).items():
        kinds = get_args(kind) or (kind,)
        if not {int, float} & set(kinds):
            continue
        if not isinstance(options[name], (int, *kinds)) or isinstance(options[name], bool):
            what = "a number" if float in kinds else "a whole number"
            raise ConfigError(f"{name}: expected {what}, got {options[name]!r}")
        if isinstance(options[name], float) and not math.isfinite(options[name]):
            raise ConfigError(f"{name}: expected a finite number, got {options[name]}")


def _check_export(options: dict[str, Any]) -> None:
    check_types(options, _types("export", options))


def _check_report(options: dict[str, Any]) -> None:
    check_types(options, _types("report", options))
    if not options["runs"]:
        raise ConfigError("runs: expected the folder of a run, or several, got none")


_CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "sample": _check_sample, "evaluate": _check_evaluate, "export": _check_export, "make_shards": _check_make_shards,
    "report": _check_report,
}  # fmt: skip


def check(program: str, cfg: DictConfig) -> None:
    """Checks the root options of a program.

    Raises:
        ConfigError: naming the option, the expected value and the value given.
    """
    if program == "train":
        check_root(cfg)
        return
    if program == "make_shards" and cfg.verify is not None:
        cfg.input = cfg.output = None
    _CHECKS[program](to_plain(cfg))


def read(program: str, cfg: DictConfig) -> Any:
    """The root options of a program, which ``check`` has checked, as its dataclass; for train.py the configuration
    itself, which the program completes first."""
    if program == "train":
        return cfg
    plain, names = to_plain(cfg), {f.name for f in fields(_OPTIONS[program])}
    own = {name: value for name, value in plain.items() if name in names}
    of_task = {name: value for name, value in plain.items() if name not in names}
    return SampleOptions(**own, task_options=of_task) if program == "sample" else _OPTIONS[program](**own)
