"""The configuration of runs by dotted names, and the differences between runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from audio_diffusion.callbacks.page.records import Run

_OWN = ("name", "run_dir")  # these differ between any two runs


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted name, value) of all values in nested mappings; lists are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def settings(run: Run) -> dict[str, str]:
    """Returns the configuration, the commit and the data of a run."""
    return {**dict(flat(run.config)), **dict(flat(run.details, "details."))}


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Returns (name, value in each run) of the settings that differ between runs; a missing one is "-".

    Names and folders, which differ between any two runs, are left out.
    """
    by_run = [settings(run) for run in runs]
    names = list(dict.fromkeys(name for found in by_run for name in found))
    rows = []
    for name in names:
        values = [found.get(name, "-") for found in by_run]
        compared = {_without_folder(value, run) for value, run in zip(values, runs, strict=True)}
        if name not in _OWN and len(set(values)) > 1 and len(compared) > 1:
            rows.append((name, values))
    return rows


def _without_folder(value: str, run: Run) -> str:
    """Replaces the run's own name and folder in a value."""
    if value == run.config.get("name"):
        return "NAME"
    folder = str(run.config.get("run_dir") or "")
    if folder and (value == folder or value.startswith((f"{folder}/", f"{folder}\\"))):
        return f"RUN/{Path(value).relative_to(folder).as_posix()}"
    return value
