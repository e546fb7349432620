"""Reads the files in a run's folder; damaged or missing files are noted and left out."""

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Points = list[tuple[int, float]]  # (step, value), by step
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
    curves: dict[str, Points] = field(default_factory=dict)  # by name of the metric
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


def lowest(curves: dict[str, Points]) -> list[Lowest]:
    """Returns the lowest values of the curves that measure quality and for which less is better."""
    found = [name for name in JUDGED if name in curves]
    best = [min(curves[name], key=lambda point: point[1]) for name in found]
    return [Lowest(name, value, step, curves[name][-1][1]) for name, (step, value) in zip(found, best, strict=True)]


def is_run(folder: Path) -> bool:
    """Whether a folder contains any files of a run."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "config.yaml", "samples"))


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        ValueError: if it is not the folder of a run.
    """
    if not is_run(folder):
        what = "has no metrics.jsonl, config.yaml or samples/" if folder.is_dir() else "is not a folder"
        raise ValueError(f"expected the folder of a run, such as runs/quickstart, but {folder} {what}")
    run = Run(folder, folder.resolve().name)
    run.config = _mapping(run, "config.yaml")
    run.details = _mapping(run, "details.json")
    run.curves = _curves(run)
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


def _curves(run: Run) -> dict[str, Points]:
    """Reads metrics.jsonl: the finite values of each metric, by step."""
    curves: dict[str, Points] = {}
    damaged, not_finite = 0, 0
    try:
        with open(run.folder / "metrics.jsonl", encoding="utf-8", errors="replace") as f:
            for line in f:
                row = _row(line)
                if row is None:
                    damaged += bool(line.strip())
                    continue
                step = row.pop("step")
                for name, value in row.items():
                    if isinstance(value, int | float) and math.isfinite(value):
                        curves.setdefault(name, []).append((step, float(value)))
                    else:
                        not_finite += 1
    except FileNotFoundError:
        pass
    except OSError as error:
        run.notes.append(f"metrics.jsonl cannot be read: {error}")
    if damaged:
        run.notes.append(f"metrics.jsonl: {damaged} damaged or half-written line{'s' * (damaged > 1)} left out")
    if not_finite:
        run.notes.append(f"metrics.jsonl: {not_finite} value{'s' * (not_finite > 1)} not finite, not drawn")
    for points in curves.values():
        points.sort(key=lambda point: point[0])
    return curves


def _row(line: str) -> dict[str, Any] | None:
    """Parses a line of metrics.jsonl; None if it is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


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
