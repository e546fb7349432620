"""The result of packing, and the files that describe the data set: manifest, refused files and picture."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_diffusion.data.shards.find import MANIFEST
from audio_diffusion.data.shards.index import write_atomic
from audio_diffusion.metrics import charts, pictures

REFUSED, PICTURE = "refused.csv", "manifest.png"


@dataclass
class PackReport:
    """Result of ``pack``: clips and seconds by split, and the refused files with reasons. ``resumed`` is the number of
    shards that an interrupted run had finished; ``notes`` are lines for the user."""

    clips: dict[str, int]
    seconds: dict[str, float]
    classes: list[str]
    shards: list[dict[str, Any]]
    refused: list[tuple[str, str]]
    manifest: dict[str, Any]
    resumed: int
    notes: list[str]


def write_report(report: PackReport, rests: list[tuple[str, str]], output: Path, picture: bool) -> None:
    """Writes the files that describe the data set. The manifest comes last, since it marks the data set as complete."""
    write_refused([*report.refused, *rests], output)
    if picture:
        pictures.save(charts.data_set(report.manifest), output / PICTURE)
    write_atomic(output / MANIFEST, json.dumps(report.manifest, indent=1))


def write_refused(rows: list[tuple[str, str]], output: Path) -> None:
    with open(output / REFUSED, "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
        csv.writer(f).writerows([("file", "reason"), *rows])
