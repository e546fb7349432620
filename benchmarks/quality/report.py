"""RESULTS.md from the finished cells."""

import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"one thread of {name}, torch {torch.__version__}"


def _one(records: Sequence[Record], embedding: str) -> str:
    """KAD of the seeds of one system: mean ± standard deviation, or the interval of the only one."""
    found = [record["kad"][embedding] for record in records if embedding in record["kad"]]
    values = [estimate["value"] for estimate in found if math.isfinite(estimate["value"])]
    if not values:
        return "too few windows" if found else NOT_RUN
    if len(values) > 1:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)} seeds)"
    interval = found[0]["interval"]
    return f"{values[0]:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def _mean(records: Sequence[Record], embedding: str) -> float:
    values = [record["kad"][embedding]["value"] for record in records if embedding in record["kad"]]
    values = [value for value in values if math.isfinite(value)]
    return statistics.mean(values) if values else math.nan


def _ratio(of: Mapping[str, Sequence[Record]], embedding: str) -> str:
    ours, peers = _mean(of["ours"], embedding), [_mean(of[name], embedding) for name in SYSTEMS[2:]]
    known = [value for value in peers if math.isfinite(value)]
    if not known or not math.isfinite(ours):
        return "-"
    note = "" if len(known) == len(peers) else " (of one peer)"
    return f"{ours / min(known):.2f}{note}"


def _accuracy(records: Sequence[Record]) -> str:
    values = [record["accuracy"] for record in records if record.get("accuracy") is not None]
    return f"{100 * statistics.mean(values):.0f} %" if values else "-"


def _select(records: Iterable[Record], corpus: str, system: str, minutes: float, device: str) -> list[Record]:
    return [
        record
        for record in records
        if (record["kind"], record["corpus"], record["system"]) == ("cell", corpus, system)
        and (system == "real" or (record["minutes"], record["device"]) == (minutes, device))
    ]


def _tables(records: Sequence[Record], minutes: float, device: str) -> list[str]:
    """The tables of one budget: KAD by each embedding, accuracy, and what was spent."""
    named = [record["corpus"] for record in records if record["kind"] == "cell"]
    corpora = list(dict.fromkeys([*CORPORA, *named]))
    of = {c: {s: _select(records, c, s, minutes, device) for s in SYSTEMS} for c in corpora}
    unit = "of CPU time on one thread" if device == "cpu" else "of one GPU"
    lines = [f"## {minutes:g} minutes {unit}", ""]
    if not any(of[c][s] for c in corpora for s in SYSTEMS[1:]):
        return [*lines, "Not run.", ""]
    head = ["corpus", "real", *SYSTEMS[1:]]
    for embedding, title in (("yamnet", "KAD by YAMNet"), ("log_mel", "KAD by log-mel statistics")):
        columns = [*head, f"ours / best peer (goal {GOAL})"] if embedding == "yamnet" else [*head, "ours / best peer"]
        lines += [f"{title}:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for c in corpora:
            cells = [_one(of[c][s], embedding) for s in SYSTEMS]
            lines.append(f"| {c} | {' | '.join(cells)} | {_ratio(of[c], embedding)} |")
        lines.append("")
    lines += ["Clips named as asked, and real test clips named right:", "", f"| {' | '.join(head)} |"]
    lines.append("|---" * len(head) + "|")
    lines += [f"| {c} | {' | '.join(_accuracy(of[c][s]) for s in SYSTEMS)} |" for c in corpora]
    columns = ["corpus", "system", "seed", "parameters", "steps", "seconds", "learning rate", "date"]
    lines += ["", "What was spent:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for c in corpora:
        for s in SYSTEMS[1:]:
            for record in of[c][s]:
                spent = record["spent"]
                lines.append(
                    f"| {c} | {s} | {record['seed']} | {spent['parameters'] / 1e6:.1f} M | {spent['steps']:,} | "
                    f"{spent['seconds']:.0f} | {spent['learning_rate']} | {record['date']} |"
                )
    return [*lines, ""]


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
    budgets = {(minutes, "cpu") for minutes in MINUTES}
    budgets |= {(record["minutes"], record["device"]) for record in cells if record["system"] != "real"}
    machines = sorted({f"{record['machine']} ({record['date']})" for record in cells})
    settings = sorted({f"{r['clips']} generated clips, {r['calls']} network calls each" for r in cells})
    lines = [head.rstrip(), "", *[f"- {name}" for name in (*machines, *settings)], *[""] * bool(cells)]
    for minutes, device in sorted(budgets, key=lambda budget: (budget[1], budget[0])):
        lines += _tables(records, minutes, device)
    return "\n".join([*lines, *_searches(records)]).rstrip() + "\n"
