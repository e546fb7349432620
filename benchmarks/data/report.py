"""Measured figures as text."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Ways = dict[str, list[dict[str, float]] | str]  # way -> its measurements, or why there are none
OURS, ONE_WORKER, TAR, PCM = "ours", "ours, 1 worker", "mapped tar + seek", "mapped PCM16"
LIBRARIES = ("torch", "torchaudio", "webdataset", "soundfile", "numpy", "lightning")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median [least-most]."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}-{high}]"


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def per_cpu(answer: dict[str, float]) -> float:
    """Seconds of crops per CPU-second, of the main process and its workers together."""
    return answer["audio"] / (answer["main"] + answer["workers"])


def per_wall(answer: dict[str, float]) -> float:
    return answer["audio"] / answer["wall"]


def ratios(above: list[dict], below: list[dict], rate: Callable[[dict], float]) -> list[float]:
    """Of measurements that were made one after the other."""
    return [rate(a) / rate(b) for a, b in zip(above, below, strict=True)]


def cell(answers: list[dict[str, float]] | str) -> str:
    if isinstance(answers, str):
        return "–"
    low, middle, high = (_figure(f([per_cpu(a) for a in answers])) for f in (min, statistics.median, max))
    return f"{middle} [{low}-{high}]"


def row_text(name: str, ways: Ways) -> str:
    return f"{name}: " + "; ".join(
        f"{way} {answers if isinstance(answers, str) else cell(answers)}" for way, answers in ways.items()
    )


def workers_text(name: str, answers: dict[str, Any]) -> str:
    return f"{name}: two workers over one {spread(ratios(answers['2'], answers['1'], per_wall), 2)}"


def load() -> str:
    return "load average {:.1f} {:.1f} {:.1f}".format(*os.getloadavg())


def machine() -> list[str]:
    """What it runs on, and what else it runs; one line each."""
    cpu = next(
        (
            x.partition(": ")[2]
            for x in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if "model name" in x
        ),
        "?",
    )
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{time.strftime('%Y-%m-%d %H:%M')}, commit {commit}",
        f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB; {load()} at the start",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    ]


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *lines])


def throughput(rows: dict[str, Ways]) -> str:
    ways = list(dict.fromkeys(way for found in rows.values() for way in found))
    lines = [[name, *(cell(found[way]) if way in found else "" for way in ways)] for name, found in rows.items()]
    return table(["row", *ways], lines)


def goals(rows: dict[str, Ways]) -> str:
    """Ratios, measurement by measurement in one run: median [least-most]."""
    lines = []
    for name, found in rows.items():
        base = PCM if PCM in found else TAR
        line = [name, base]
        for way in (OURS, ONE_WORKER):
            measured, against = found[way], found[base]
            usable = isinstance(measured, list) and isinstance(against, list)
            line.append(spread(ratios(measured, against, per_cpu), 2) if usable else "–")  # type: ignore[arg-type]
        trainer = found.get("stable-audio-tools", "")
        if isinstance(trainer, list) and isinstance(found[OURS], list):
            line.append(spread(ratios(found[OURS], trainer, per_cpu), 1))  # type: ignore[arg-type]
        else:
            line.append("")
        lines.append(line)
    return table(["row", "against", "ours", "ours, 1 worker: with transfer", "ours over stable-audio-tools"], lines)


def workers(rows: dict[str, Ways]) -> str:
    lines = []
    for name, found in rows.items():
        one, two = found["1"], found["2"]
        assert isinstance(one, list)
        assert isinstance(two, list)
        factors = sorted(ratios(two, one, per_wall))
        quarter = len(factors) // 4
        main = statistics.median(1e3 * a["main"] / a["audio"] for a in two)
        lines.append(
            [
                name,
                *(spread([per_wall(a) for a in answers]) for answers in (one, two)),
                spread(factors, 2),
                f"{factors[quarter]:.2f}-{factors[-1 - quarter]:.2f}",
                f"{main:.3f}",
            ]
        )
    columns = ["row", "1 worker, audio-s/s", "2 workers", "2 over 1", "middle half", "main process, CPU-ms per audio-s"]
    return table(columns, lines)


def stages(rows: dict[str, dict[str, float]], measured: dict[str, Ways], crops_s: dict[str, float]) -> str:
    names = list(next(iter(rows.values())))
    lines = []
    for name, spent in rows.items():
        ours, worker = measured[name][OURS], measured[name][ONE_WORKER]
        transfer = "–"
        if isinstance(ours, list) and isinstance(worker, list):
            took = [statistics.median(1e3 * crops_s[name] / per_cpu(a) for a in answers) for answers in (ours, worker)]
            transfer = f"{took[1] - took[0]:.3f}"
        lines.append([name, *(f"{spent[stage]:.3f}" for stage in names), transfer])
    return table(["row", *names, "transfer"], lines)


def failures(rows: dict[str, Ways]) -> str:
    reasons = {
        f"- {way}, {name}: {why}" for name, found in rows.items() for way, why in found.items() if isinstance(why, str)
    }
    return "\n".join(sorted(reasons)) or "nothing: all ran."


def write(
    head: list[str], rows: dict[str, Ways], pairs: dict[str, Ways], looked: dict, crops_s: dict[str, float]
) -> str:
    """RESULTS.md."""
    cold = [
        [name, *(spread([run[part] for run in runs], 2) for part in ("imports", "setup", "first", "second"))]
        for name, runs in looked["cold"].items()
    ]
    kinds = ("worker resident", "worker own", "worker anonymous", "main resident")
    memory = [[name, *(f"{found[kind]:.0f}" for kind in kinds)] for name, found in looked["memory"].items()]
    figures = {
        "head": "\n".join(f"- {line}" for line in [*head, f"{load()} at the end"]),
        "throughput": throughput(rows),
        "failures": failures(rows),
        "goals": goals(rows),
        "pairs": str(len(next(iter(pairs.values()))["1"])),
        "workers": workers(pairs),
        "stages": stages(looked["stages"], rows, crops_s),
        "cold": table(["", "imports", "setup", "first batch", "second batch"], cold),
        "start": spread(looked["late"]["start"], 1),
        "late": spread(looked["late"]["late"], 1),
        "memory": table(["row", *kinds], memory),
    }
    return Path(__file__).with_name("RESULTS.template.md").read_text(encoding="utf-8").format(**figures)
