"""Draws what a W&B run holds, from the files of an offline run: the sections and panels that W&B makes of its keys.

python docs/draw_wandb.py runs/NAME/wandb/offline-run-* docs/wandb.png

The picture is drawn from the run's own data; it is not a screenshot of W&B.
"""

import json
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from wandb.proto.wandb_internal_pb2 import Record

from audio_diffusion.callbacks.wandb_run import GROUPS, STEP

COLUMNS = 6  # panels of a section that are drawn
Series = dict[str, list[tuple[int, Any]]]


def records(path: Path) -> Iterator[Record]:
    """Reads the records of a ``.wandb`` file: blocks of 32 KiB of (checksum, size, kind, data)."""
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def series(run: Path) -> Series:
    """Returns (step, value) of each key of a run."""
    found: Series = defaultdict(list)
    for record in records(next(run.glob("*.wandb"))):
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            value = json.loads(item.value_json)
            if len(item.nested_key) > 1:  # a part of a sound, a picture or a table
                row.setdefault(item.nested_key[0], {})[item.nested_key[1]] = value
            else:
                row[item.key or item.nested_key[0]] = value
        for key, value in row.items():
            if not key.startswith("_") and key != STEP:
                found[key].append((row.get(STEP, 0), value))
    return found


def panel(axes: Axes, run: Path, key: str, points: list[tuple[int, Any]]) -> None:
    """Draws one panel: a curve, a sound, a picture or a table."""
    step, last = points[-1]
    kind = last.get("_type", "") if isinstance(last, dict) else ""
    axes.set_title(key.partition("/")[2], fontsize=8)
    axes.tick_params(labelsize=6)
    if not kind:
        axes.plot(*zip(*points, strict=True), ".-", lw=1, ms=3)
        return
    axes.set_xticks([])
    axes.set_yticks([])
    if kind == "audio-file":
        samples, _ = soundfile.read(run / "files" / last["path"], always_2d=True)
        axes.plot(samples[:, 0], lw=0.4)
        axes.set_xlabel(f"▶ step {step}, of {len(points)} rounds", fontsize=7)
    elif kind == "image-file":
        axes.imshow(plt.imread(run / "files" / last["path"]), aspect="auto")
        axes.set_xlabel(f"step {step}", fontsize=7)
    else:
        table = json.loads((run / "files" / last["path"]).read_text())
        lines = [", ".join(map(str, table["columns"]))] + [", ".join(map(str, row)) for row in table["data"]]
        axes.text(0.02, 0.95, "\n".join(line[:44] for line in lines), fontsize=5, va="top", transform=axes.transAxes)


def draw(run: Path, target: Path) -> None:
    """Draws the sections of a run, one below the other."""
    found = series(run)
    sections = {group: [key for key in sorted(found) if key.split("/")[0] == group] for group in GROUPS}
    sections = {group: keys for group, keys in sections.items() if keys}
    figure, grid = plt.subplots(len(sections), COLUMNS, figsize=(12, 1.6 * len(sections)), squeeze=False)
    for (group, keys), line in zip(sections.items(), grid, strict=True):
        more = f"\n{len(keys) - COLUMNS} more" if len(keys) > COLUMNS else ""
        line[0].annotate(group + more, (-0.75, 0.5), xycoords="axes fraction", fontsize=9, va="center", ha="center")
        for axes, key in zip(line, keys[:COLUMNS], strict=False):
            panel(axes, run, key, found[key])
        for axes in line[len(keys) :]:
            axes.axis("off")
    figure.subplots_adjust(left=0.11, right=0.99, top=0.97, bottom=0.04, hspace=0.75, wspace=0.4)
    figure.savefig(target, dpi=80)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
