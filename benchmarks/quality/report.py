"""RESULTS.md from the finished cells."""

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Record = Mapping[str, Any]
CORPORA = ("drums", "speech", "instruments", "music", "environment")
SYSTEMS = ("real", "ours", "audio-diffusion-pytorch", "diffusers")
MINUTES = (15.0, 60.0)
GOAL = 0.35
NOT_RUN = "not run"


def machine(device: str) -> str:
    """Processor or GPU, and the version of torch."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [
        line.partition(":")[2].strip()
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else ()
        )
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"one thread of {name}, torch {torch.__version__}"


def _values(records: Sequence[Record], embedding: str) -> list[float]:
    found = [record["kad"][embedding]["value"] for record in records if embedding in record["kad"]]
    return [value for value in found if value is not None]


def _one(records: Sequence[Record], embedding: str) -> str:
    """KAD of the seeds of one system: mean ± standard deviation, or the interval of the only one."""
    found = [record["kad"][embedding] for record in records if embedding in record["kad"]]
    values = _values(records, embedding)
    if not values:
        return "too few windows" if found else NOT_RUN
    if len(values) > 1:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)} seeds)"
    interval = next(estimate["interval"] for estimate in found if estimate["value"] is not None)
    return f"{values[0]:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def _ratio(of: Mapping[str, Sequence[Record]], embedding: str) -> str:
    ours = _values(of["ours"], embedding)
    peers = [values for name in SYSTEMS[2:] if (values := _values(of[name], embedding))]
    if not peers or not ours:
        return "-"
    note = "" if len(peers) == len(SYSTEMS) - 2 else " (of one peer)"
    return f"{statistics.mean(ours) / min(map(statistics.mean, peers)):.2f}{note}"


def _accuracy(records: Sequence[Record]) -> str:
    values = [record["accuracy"] for record in records if record.get("accuracy") is not None]
    return f"{100 * statistics.mean(values):.0f} %" if values else "-"


@dataclass(frozen=True, order=True)
class Setting:
    """What the cells of one set of tables share."""

    device: str
    minutes: float
    calls: int
    clips: int
    reference: int
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, record: Record, minutes: float | None = None) -> "Setting":
        """That of a cell; ``minutes``: in place of its own."""
        own = record["minutes"] if minutes is None else minutes
        shared = (record[name] for name in ("calls", "clips", "reference"))
        return cls(record["device"], own, *shared, tuple(record["overrides"]))

    @property
    def title(self) -> str:
        """Heading of its tables."""
        unit = "CPU time on one thread" if self.device == "cpu" else "a GPU"
        return f"## {self.minutes:g} minutes of {unit}"

    @property
    def line(self) -> str:
        """How clips were generated and compared."""
        options = f", with {' '.join(self.overrides)}" if self.overrides else ""
        return (
            f"{self.clips} generated clips, {self.calls} network calls each, against at most {self.reference} test "
            f"clips{options}."
        )


def _select(cells: Iterable[Record], corpus: str, system: str, setting: Setting) -> list[Record]:
    """The seeds of one system; of a peer those that were chosen from most learning rates."""
    minutes = setting.minutes if system == "real" else None  # real clips serve all times
    found = [
        record
        for record in cells
        if (record["corpus"], record["system"]) == (corpus, system) and Setting.of(record, minutes) == setting
    ]
    most = max((len(record.get("offered", ())) for record in found), default=0)
    return [record for record in found if len(record.get("offered", ())) == most]


def _tables(cells: Sequence[Record], setting: Setting) -> list[str]:
    """The tables of one setting: KAD by each embedding, accuracy, and what was spent."""
    corpora = list(dict.fromkeys([*CORPORA, *(record["corpus"] for record in cells)]))
    of = {c: {s: _select(cells, c, s, setting) for s in SYSTEMS} for c in corpora}
    lines = [setting.title, "", setting.line, ""]
    head = ["corpus", "real", *SYSTEMS[1:]]
    for embedding, title in (("yamnet", "KAD by YAMNet"), ("log_mel", "KAD by log-mel statistics")):
        columns = [*head, f"ours / best peer (goal {GOAL})"] if embedding == "yamnet" else [*head, "ours / best peer"]
        lines += [f"{title}:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for c in corpora:
            row = [_one(of[c][s], embedding) for s in SYSTEMS]
            lines.append(f"| {c} | {' | '.join(row)} | {_ratio(of[c], embedding)} |")
        lines.append("")
    lines += ["Clips named as asked, and real test clips named right:", "", f"| {' | '.join(head)} |"]
    lines.append("|---" * len(head) + "|")
    lines += [f"| {c} | {' | '.join(_accuracy(of[c][s]) for s in SYSTEMS)} |" for c in corpora]
    columns = ["corpus", "system", "seed", "parameters", "steps", "seconds", "learning rate", "chosen from", "date"]
    lines += ["", "What was spent:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for c in corpora:
        for s in SYSTEMS[1:]:
            for record in of[c][s]:
                spent = record["spent"]
                lines.append(
                    f"| {c} | {s} | {record['seed']} | {spent['parameters'] / 1e6:.1f} M | {spent['steps']:,} | "
                    f"{spent['seconds']:.0f} | {spent['learning_rate']} | {_offered(record)} | {record['date']} |"
                )
    return [*lines, ""]


def _offered(record: Record) -> str:
    return ", ".join(f"{rate:g}" for rate in record["offered"]) or "-"


def _searches(records: Sequence[Record]) -> list[str]:
    found = [record for record in records if record["kind"] == "search"]
    if not found:
        return []
    lines = ["## Learning rates of the peers", "", "Their own loss on held-out clips, averaged weights, seed 0:", ""]
    lines += ["| corpus | system | minutes | learning rate | loss |", "|---|---|---|---|---|"]
    for r in found:
        spent = r["spent"]
        lines.append(
            f"| {r['corpus']} | {r['system']} | {r['minutes']:g} | {spent['learning_rate']:g} | "
            f"{spent['held_out_loss']:.4f} |"
        )
    return [*lines, ""]


def text(records: Sequence[Record], head: str) -> str:
    """The whole page."""
    cells = [record for record in records if record["kind"] == "cell"]
    machines = sorted({f"- {record['machine']}, {record['date']}" for record in cells})
    lines = [head.rstrip(), "", *machines, *[""] * bool(machines)]
    settings = sorted({Setting.of(record) for record in cells if record["system"] != "real"})
    for setting in settings:
        lines += _tables(cells, setting)
    for minutes in MINUTES:
        if not any((setting.device, setting.minutes) == ("cpu", minutes) for setting in settings):
            lines += [f"## {minutes:g} minutes of CPU time on one thread", "", "Not run.", ""]
    return "\n".join([*lines, *_searches(records)]).rstrip() + "\n"
