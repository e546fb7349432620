"""Renders and writes the page."""

import math
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from audio_diffusion import __version__
from audio_diffusion.callbacks.page import curves
from audio_diffusion.callbacks.page.metrics_log import MetricsLog
from audio_diffusion.callbacks.page.records import Round, Run, lowest, read_evaluation, read_results, read_run
from audio_diffusion.callbacks.page.settings import differences, settings
from audio_diffusion.callbacks.page.thumbnails import FOLDER, draw_missing, embedded, thumbnail_of

NAME = "index.html"
_MARK = '<meta name="generator" content="audio_diffusion'  # identifies the pages of this program
_TEMPLATES = Path(__file__).with_name("templates")


def write_page(folders: Sequence[Path], path: Path, logs: Sequence[MetricsLog | None] = ()) -> list[str]:
    """Writes one page about one or several runs; replaces an older page.

    The page refers to sounds and pictures by relative paths. Missing spectrograms are drawn.

    Args:
        folders: folders of the runs.
        path: path of the page.
        logs: the metrics.jsonl of each run, if a part of them has been read before.

    Returns:
        Notes on files that could not be read or drawn, by run.

    Raises:
        ValueError: if a folder is not that of a run, or ``path`` is a file other than a page.
    """
    _check_target(path)
    runs = [read_run(folder, log) for folder, log in zip(folders, logs or [None] * len(folders), strict=True)]
    for run, name in zip(runs, _distinct([run.folder for run in runs]), strict=True):
        run.name = name
        draw_missing(run)
    return _write(runs, path)


def write_results_page(folder: Path, path: Path) -> list[str]:
    """Writes a page about a folder of generated sounds with the json beside it; see ``write_page``."""
    _check_target(path)
    return _write([read_results(folder)], path)


def write_evaluation_page(folder: Path) -> tuple[Path, list[str]]:
    """Writes a page about an evaluation into its folder: its sounds, figures and pictures.

    Returns:
        The page, and notes on files that could not be read.
    """
    path = folder / NAME
    _check_target(path)
    return path, _write([read_evaluation(folder)], path)


def _check_target(path: Path) -> None:
    """Raises ValueError if the path exists and is not a page."""
    if path.is_dir():
        raise ValueError(f"output: expected a file, such as {path / NAME}, but {path} is a folder")
    if path.is_file() and _MARK.encode() not in path.read_bytes()[:1000]:
        raise ValueError(f"output: {path} exists and is not a page of this program; choose another output=FILE")


def _write(runs: Sequence[Run], path: Path) -> list[str]:
    """Writes a page; returns the notes on its runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(render(runs, path.parent), encoding="utf-8")
    os.replace(part, path)
    return [f"{run.name}: {note}" for run in runs for note in run.notes]


def _distinct(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest last parts of paths that distinguish the folders."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, 1)]


def render(runs: Sequence[Run], base: Path) -> str:
    """Returns the page as HTML.

    Args:
        runs: one or more runs.
        base: folder of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    panels = curves.panels(runs)
    return environment.get_template("page.html.j2").render(
        version=__version__,
        title=" · ".join(run.name for run in runs),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        facts=[_facts(run) for run in runs],
        is_folder=runs[0].is_folder,
        data={"runs": [_data(run, base) for run in runs]},
        num_clips=sum(len(found.clips) for run in runs for found in run.rounds),
        panels=[panel for panel in panels if panel.is_first],
        more_panels=[panel for panel in panels if not panel.is_first],
        differences=differences(runs) if len(runs) > 1 else [],
        settings=[sorted(settings(run).items()) for run in runs],
        evaluations=[_evaluations(run, base) for run in runs],
        likelihood=[_likelihood(run, base) for run in runs],
        size=curves,
    )


def url(path: Path, base: Path) -> str:
    """Returns the URL of a file relative to the folder of the page; on another drive of Windows, its absolute URL."""
    try:
        return quote(Path(os.path.relpath(path, base)).as_posix())
    except ValueError:
        return path.resolve().as_uri()


def _facts(run: Run) -> list[tuple[str, str]]:
    """Returns the facts about a run shown at the top of the page."""
    facts = []
    steps = [curve.last[0] for curve in run.curves.values()] + [found.step for found in run.rounds]
    last = run.config.get("trainer", {}).get("max_steps") if isinstance(run.config.get("trainer"), dict) else None
    if steps:
        facts.append(("step", f"{max(steps):,}" + (f" of {last:,}" if isinstance(last, int) else "")))
    for found in lowest(run.curves):
        facts.append((f"lowest {found.name}", f"{found.value:.4g} at step {found.step:,}"))
        facts.append((f"last {found.name}", f"{found.last:.4g}"))
    if run.rounds and not run.is_folder:
        facts.append(("rounds of sounds", f"{len(run.rounds):,}"))
    for name, value in run.details.items():
        if name == "git_commit":
            facts.append(("commit", str(value)[:19]))
    return facts


def _data(run: Run, base: Path) -> dict[str, Any]:
    """Returns the rounds of a run in the format of the page's script."""
    slots: dict[str, dict[str, str]] = {}
    for found in run.rounds:
        for clip in found.clips:
            slots.setdefault(clip.slot, {"id": clip.slot, "label": clip.label, "seed": clip.row.get("seed", "")})
    number = {slot: place for place, slot in enumerate(sorted(slots))}
    return {
        "name": run.name,
        "isFolder": run.is_folder,
        "ending": next((clip.file.suffix for found in run.rounds for clip in found.clips), ""),
        "samples": url(run.folder.parent if run.is_folder else run.folder / "samples", base),
        "thumbnails": url(run.folder / FOLDER, base),
        "embedded": embedded(run) if run.is_folder else {},
        "slots": [slots[slot] for slot in number],
        "rounds": [_round(run, found, number) for found in run.rounds],
    }


def _round(run: Run, found: Round, number: dict[str, int]) -> dict[str, Any]:
    """Returns a round; its clips are [slot, peak and RMS in dBFS, % clipped, whether there is a spectrogram]."""
    clips = []
    for clip in found.clips:
        peak, rms = _db(clip.row.get("peak", "")), _db(clip.row.get("rms", ""))
        has_picture = int(not run.is_folder and thumbnail_of(run, found, clip).exists())
        clips.append([number[clip.slot], peak, rms, _number(clip.row.get("clipped_percent", "")), has_picture])
    return {"step": found.step, "folder": found.folder.name, "pictures": found.pictures, "clips": clips}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _db(text: str) -> float | None:
    """Converts a magnitude to dB of full scale."""
    value = _number(text)
    return None if value is None else round(20 * math.log10(max(value, 1e-6)), 1)


def _evaluations(run: Run, base: Path) -> list[dict[str, Any]]:
    """Returns the figures and pictures of each evaluation.json."""
    found = []
    for name, evaluation in run.evaluations.items():
        metrics = evaluation.get("metrics")
        rows = [
            (f"{metric}/{figure}", _figure(value))
            for metric, measured in (metrics.items() if isinstance(metrics, dict) else ())
            if isinstance(measured, dict)
            for figure, value in (measured.get("figures") or {}).items()
            if isinstance(value, dict)
        ]
        folder = run.folder.parent if run.is_folder else run.folder / name
        pictures = [(path.stem, url(path, base)) for path in sorted(folder.glob("*.png"))]
        clips = evaluation.get("clips")
        counts = ", ".join(f"{count} {of}" for of, count in clips.items()) if isinstance(clips, dict) else ""
        tables = [table for table in (_sweep(evaluation), _lengths(evaluation)) if table]
        found.append({"name": name, "rows": rows, "pictures": pictures, "clips": counts, "tables": tables})
    return found


def _sweep(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the table of a sweep: a row for each way to generate."""
    columns = ("sampler", "num_steps", "guidance_scale", "network_calls", "real_time_factor")
    return _table("Ways to generate", columns, evaluation.get("sweep"))


def _lengths(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the table of averages of several lengths."""
    return _table("Averages of the weights", ("length",), evaluation.get("ema_lengths"))


def _table(title: str, columns: Sequence[str], rows: Any) -> dict[str, Any] | None:
    """Returns a table of rows that have columns of their own and figures; None without rows."""
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row.get("figures") or {}))
    cells = []
    for row in rows:
        own = [_short(row.get(column)) for column in columns]
        figures = [_figure((row.get("figures") or {}).get(name) or {}) for name in names]
        cells.append(own + [f"{value} ({interval})" if interval else value for value, interval, _ in figures])
    header = [column.replace("_", " ") for column in columns]
    return {"title": title, "header": [*header, *names], "rows": cells}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _figure(figure: dict[str, Any]) -> tuple[str, str, str]:
    """Formats value, interval and note of a measured figure."""
    value, error, interval = figure.get("value"), figure.get("error"), figure.get("interval")
    shown = f"{value:.4g}" if isinstance(value, int | float) else "-"
    if isinstance(error, int | float):
        shown += f" ± {error:.2g}"
    is_interval = isinstance(interval, list) and len(interval) == 2 and None not in interval
    bounds = f"{interval[0]:.4g} to {interval[1]:.4g}" if is_interval and interval else ""
    return shown, bounds, str(figure.get("note") or "")


def _likelihood(run: Run, base: Path) -> list[tuple[str, str]]:
    """Returns (step, URL) of the pictures of the bound by noise level."""
    paths = sorted((run.folder / "likelihood").glob("step_*.png"))
    return [(path.stem.removeprefix("step_").lstrip("0") or "0", url(path, base)) for path in paths]
