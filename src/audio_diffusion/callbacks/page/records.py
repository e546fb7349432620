"""Reads the files in a run's folder; damaged or missing files are noted and left out."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from audio_diffusion.callbacks.page.metrics_log import Curve, MetricsLog

JUDGED = ("val/loss_ema", "val/bits_per_dim", "metrics/kad", "metrics/fad")
PICTURES = ("spectrograms.png", "reverse_process.png")


@dataclass(frozen=True)
class Clip:
    """A generated sound.

    Attributes:
        file: its audio.
        slot: the name of the file without its ending, equal for the same slot in all rounds.
        row: its row in samples.csv: label, seed, peak, ..; empty if there is none.
    """

    file: Path
    slot: str
    row: dict[str, str]

    @property
    def label(self) -> str:
        return self.row.get("label") or self.slot.partition("_")[2] or self.slot


@dataclass(frozen=True)
class Round:
    """The sounds generated at one step, and the names of their pictures."""

    step: int
    folder: Path
    clips: list[Clip]
    pictures: list[str]


@dataclass
class Run:
    """The contents of a run's folder."""

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)  # by name of the metric
    rounds: list[Round] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name of the folder
    notes: list[str] = field(default_factory=list)  # messages about files that could not be read
    is_folder: bool = False  # whether it is a folder of sounds with the json beside it, instead of a run


@dataclass(frozen=True)
class Lowest:
    """The lowest and the last value of a curve."""

    name: str
    value: float
    step: int
    last: float

    def __str__(self) -> str:
        return f"{self.name}: lowest {self.value:.4g} at step {self.step:,}, last {self.last:.4g}"


def lowest(curves: Mapping[str, Curve]) -> list[Lowest]:
    """Returns the lowest values of the curves that measure quality and for which less is better."""
    found = [(name, curves[name]) for name in JUDGED if name in curves]
    return [Lowest(name, curve.least[1], curve.least[0], curve.last[1]) for name, curve in found]


def is_run(folder: Path) -> bool:
    """Whether a folder contains any files of a run."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "config.yaml", "samples"))


def read_run(folder: Path, log: MetricsLog | None = None) -> Run:
    """Reads a run's folder.

    Args:
        folder: the folder.
        log: its metrics.jsonl, if a part of it has been read before.

    Raises:
        ValueError: if it is not the folder of a run.
    """
    if not is_run(folder):
        what = "has no metrics.jsonl, config.yaml or samples/" if folder.is_dir() else "is not a folder"
        raise ValueError(f"expected the folder of a run, such as runs/quickstart, but {folder} {what}")
    run = Run(folder, folder.resolve().name)
    run.config = _mapping(run, "config.yaml")
    run.details = _mapping(run, "details.json")
    log = log or MetricsLog(folder / "metrics.jsonl")
    run.notes += log.read()
    run.curves = log.curves
    run.rounds = sorted(_rounds(run), key=lambda found: found.step)
    for path in sorted(folder.glob("*/evaluation.json")):
        if found := _mapping(run, f"{path.parent.name}/{path.name}"):
            run.evaluations[path.parent.name] = found
    return run


def read_results(folder: Path) -> Run:
    """Reads a folder of generated sounds, by the json beside it that sample.py writes.

    Raises:
        ValueError: if there is no such json.
    """
    run = Run(folder, folder.resolve().name, is_folder=True)
    name = f"{folder.name}.json"
    record = _mapping(run, name, folder.parent)
    if not isinstance(rows := record.pop("files", None), list):
        raise ValueError(f"expected {folder.parent / name}, which sample.py writes beside its files")
    run.config = record
    clips = []
    for row in rows:
        if isinstance(row, dict) and (path := folder / str(row.get("file"))).is_file():
            known = {name: str(row[name]) for name in ("label", "seed") if row.get(name) is not None}
            clips.append(Clip(path, path.stem, known))
    if len(clips) < len(rows):
        run.notes.append(f"{len(rows) - len(clips)} of {len(rows)} sounds missing")
    checkpoint = record.get("checkpoint")
    step = checkpoint.get("step") if isinstance(checkpoint, dict) else None
    run.rounds = [Round(step if isinstance(step, int) else 0, folder, clips, [])]
    return run


def read_evaluation(folder: Path) -> Run:
    """Reads the folder of an evaluation by its evaluation.json.

    Raises:
        ValueError: if there is none.
    """
    run = Run(folder / "sounds", folder.resolve().name, is_folder=True)
    record = _mapping(run, "evaluation.json", folder)
    if not record:
        raise ValueError(f"expected {folder / 'evaluation.json'}, which evaluate.py writes")
    run.evaluations = {run.name: record}
    run.config = {name: value for name, value in record.items() if name not in ("metrics", "sounds", "sweep")}
    clips = []
    sounds = record.get("sounds")
    for row in sounds if isinstance(sounds, list) else []:
        if isinstance(row, dict) and (path := folder / str(row.get("file"))).is_file():
            clips.append(Clip(path, path.stem, {"label": str(row.get("label") or row.get("source"))}))
    step = record.get("step")
    run.rounds = [Round(step if isinstance(step, int) else 0, run.folder, clips, [])] if clips else []
    return run


def _mapping(run: Run, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Reads a YAML or json file in the run's folder, or in another; empty if there is none or it is damaged."""
    path = (folder or run.folder) / name
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        run.notes.append(f"{name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(found, dict):
        run.notes.append(f"{name} does not contain names and values")
        return {}
    return {str(key): value for key, value in found.items()}


def _rounds(run: Run) -> Iterator[Round]:
    """Reads the folders in samples/ that contain sounds."""
    for folder in (run.folder / "samples").glob("step_*"):
        if not (named := re.fullmatch(r"step_(\d+)", folder.name)):
            continue
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        table = _table(run, folder) if "samples.csv" in names else []
        clips = []
        for name in sorted(names):
            if numbered := re.fullmatch(r"((\d+)_.*)\.wav", name):
                index = int(numbered[2])
                clips.append(Clip(folder / name, numbered[1], table[index] if index < len(table) else {}))
        if table and len(table) != len(clips):
            run.notes.append(f"samples/{folder.name}: samples.csv has {len(table)} rows for {len(clips)} sounds")
        if clips:
            yield Round(int(named[1]), folder, clips, [name for name in PICTURES if name in names])


def _table(run: Run, folder: Path) -> list[dict[str, str]]:
    """Reads samples.csv."""
    try:
        with open(folder / "samples.csv", newline="", encoding="utf-8") as f:
            return [{str(key): value or "" for key, value in row.items()} for row in csv.DictReader(f)]
    except (OSError, ValueError, csv.Error) as error:
        run.notes.append(f"samples/{folder.name}/samples.csv cannot be read: {error}")
        return []
