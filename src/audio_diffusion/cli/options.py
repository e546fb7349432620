"""Checks types and ranges of the root options of each program (door 2). This module does not import torch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from audio_diffusion.cli.config import ConfigError, to_plain
from audio_diffusion.cli.train_options import check_root
from audio_diffusion.inference.targets import check_types

SAMPLE = {
    "ckpt": str, "num_samples": int | None, "labels": list[str] | None, "cond": dict | None, "seed": int,
    "guidance_scale": float | None, "guidance_interval": list[float], "guidance_rescale": float, "clip": float | None,
    "clip_quantile": float, "weak_ckpt": str | None, "weights": str, "batch_size": int, "device": str, "devices": int,
    "format": str, "output": str | None, "real": str | None, "trust": list[str],
}  # fmt: skip
EVALUATE = {
    "ckpt": str | None, "folder": str | None, "reference": str | None, "num_clips": int | None,
    "num_generated": int | None, "train": str | None, "num_train": int | None, "guidance_scale": float | None,
    "weights": str, "batch_size": int, "seed": int,
    "device": str, "output": str | None, "trust": list[str],
}  # fmt: skip
REPORT = {"runs": str | list[str], "output": str | None}
EXPORT = {"ckpt": str, "output": str, "weights": str, "trust": list[str]}
NUMBERS: dict[str, tuple[type, ...]] = {
    "val_fraction": (int, float),
    "shard_mb": (int, float),
    "num_workers": (int, type(None)),
    "sample_rate": (int, type(None)),
    "channels": (int, type(None)),
    "segment_s": (int, float, type(None)),
    "silence_db": (int, float, type(None)),
    "lufs": (int, float, type(None)),
    "max_missing": (int, float),
}


def _check_counts(options: dict[str, Any], *names: str) -> None:
    for name in names:
        if options[name] is not None and options[name] < 1:
            raise ConfigError(f"{name}: expected at least 1, got {options[name]}")


def _check_seed(options: dict[str, Any]) -> None:
    if options["seed"] < 0:
        raise ConfigError(f"seed: expected 0 or more, got {options['seed']}")


def _check_sample(options: dict[str, Any]) -> None:
    """Checks the values of the options of sample.py.

    Raises:
        ConfigError: naming the invalid option.
    """
    check_types(options, SAMPLE | ({"input": str | list[str]} if "input" in options else {}))
    _check_counts(options, "num_samples", "batch_size")
    if options["output"] and Path(options["output"]).exists() and not Path(options["output"]).is_dir():
        raise ConfigError(f"output: expected a folder, made if there is none, but {options['output']!r} is a file")
    _check_seed(options)
    if len(options["guidance_interval"]) != 2:
        raise ConfigError(f"guidance_interval: expected two times, [0, 1], got {options['guidance_interval']}")
    if options["format"] not in ("wav", "flac"):
        raise ConfigError(f"format: expected wav or flac, got {options['format']!r}")


def _check_evaluate(options: dict[str, Any]) -> None:
    check_types(options, EVALUATE)
    _check_counts(options, "num_clips", "num_generated", "num_train", "batch_size")
    _check_seed(options)
    if (options["ckpt"] is None) == (options["folder"] is None):
        got = "neither" if options["ckpt"] is None else "both"
        raise ConfigError(f"ckpt: expected a model, ckpt=RUN, or a folder of audio, folder=AUDIO; got {got}")
    if options["folder"] is not None and not Path(options["folder"]).is_dir():
        raise ConfigError(f"folder: expected a folder of audio files, but {options['folder']!r} is none")
    if options["folder"] is not None and options["reference"] is None:
        raise ConfigError("reference: expected shards or a folder of audio to compare folder with, got nothing")


def _check_make_shards(options: dict[str, Any]) -> None:
    """Raises ConfigError for values of the wrong kind."""
    for name in ("input", "output", "verify", "manifest"):
        if options[name] is not None and not str(options[name]).strip():
            what = "a csv or jsonl" if name == "manifest" else "a folder or a URL"
            raise ConfigError(f"{name}: expected {what}, got nothing")
    if options["labels"] not in ("folder", "none"):
        raise ConfigError(f"labels: expected folder or none, got {options['labels']!r}")
    for name, types in NUMBERS.items():
        if not isinstance(options[name], types) or isinstance(options[name], bool):
            what = "a whole number" if float not in types else "a number"
            raise ConfigError(f"{name}: expected {what}, got {options[name]!r}")
        if isinstance(options[name], float) and not math.isfinite(options[name]):
            raise ConfigError(f"{name}: expected a finite number, got {options[name]}")


def _check_export(options: dict[str, Any]) -> None:
    check_types(options, EXPORT)


def _check_report(options: dict[str, Any]) -> None:
    check_types(options, REPORT)
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
