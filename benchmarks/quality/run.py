"""How good is a model after the same time of training? This project beside two others; writes RESULTS.md.

    pip install -e '.[metrics,dev]' && pip install --no-deps -r benchmarks/quality/peers.txt
    python benchmarks/quality/run.py CORPORA --minutes 15 60 --seeds 0 1 2

CORPORA is a folder of corpora, or any number of NAME=FOLDER; README.md says how they are laid out and what is compared.
Each finished cell is appended to results.jsonl, and is not run again: after a kill, repeat the command. A cell that was
killed starts over, but for a training that had ended.
"""

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import audio_diffusion  # noqa: F401  isort: skip (before torch, whose threads it sets up)
import corpora
import report
import torch
from corpora import ROOT, Corpus
from measure import Judge
from ours import Ours
from peers import PEERS
from torch import Tensor

HERE = Path(__file__).parent


class System(Protocol):
    """One of the compared projects."""

    name: str
    learning_rates: tuple[float, ...]  # the published one first; none: nothing is chosen

    def problem(self) -> str:
        """Why it cannot run here; empty if it can."""
        ...

    def train(self, corpus: Corpus, seconds: float, seed: int, rate: float | None, device: str, folder: Path) -> dict:
        """Trains for so many seconds, leaves its weights in the folder, returns what was spent."""
        ...

    def generate(self, corpus: Corpus, labels: list[str], calls: int, seed: int, device: str, folder: Path) -> Tensor:
        """Clips ``[N, C, T]``, one a label."""
        ...


SYSTEMS: dict[str, System] = {"ours": Ours(), **PEERS}


class Results:
    """The finished cells, one a line of a file that is only appended to."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The cell with these values, if it is finished."""
        return next((r for r in self.records if all(r.get(name) == value for name, value in wanted.items())), None)

    def add(self, **record: Any) -> None:
        """Appends a cell; a line that a kill cut off is ended first."""
        old = self.file.read_bytes() if self.file.exists() else b""
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(("\n" if old and not old.endswith(b"\n") else "") + json.dumps(record) + "\n")
        self.records.append(record)


@dataclass(frozen=True)
class Bench:
    """What all cells of one command share."""

    results: Results
    work: Path
    device: str
    calls: int
    clips: int
    reference: int
    overrides: tuple[str, ...]
    rates: tuple[float, ...] | None
    search_minutes: float | None

    def settings(self, corpus: Corpus) -> dict[str, Any]:
        """What two cells must share to be compared."""
        return {
            "corpus": corpus.name, "experiment": corpus.experiment, "device": self.device, "calls": self.calls,
            "clips": self.clips, "reference": self.reference, "overrides": list(self.overrides),
        }  # fmt: skip

    def offered(self, system: System) -> tuple[float, ...]:
        """Learning rates of which the best is chosen; none for a system that has its own."""
        return (self.rates or system.learning_rates) if system.learning_rates else ()

    def train(self, system: System, corpus: Corpus, minutes: float, seed: int, rate: float | None) -> tuple[Path, dict]:
        """The folder of a trained model and what was spent; it is not trained twice."""
        named = [corpus.name, system.name, f"{minutes:g}min", f"rate_{rate or 'own'}", f"seed_{seed}", self.device]
        if self.overrides:
            named.append(hashlib.sha256(" ".join(self.overrides).encode()).hexdigest()[:8])
        folder = self.work / "cells" / re.sub(r"[^\w.-]+", "_", "-".join([*named, corpus.experiment]))
        done = folder / "trained.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            print(f"{corpus.name}, {system.name}: {minutes:g} min, seed {seed}, rate {rate or 'its own'}", flush=True)
            spent = system.train(corpus, 60 * minutes, seed, rate, self.device, folder)
            done.write_text(json.dumps(spent), encoding="utf-8")
        return folder, json.loads(done.read_text(encoding="utf-8"))

    def rate(self, system: System, corpus: Corpus, minutes: float) -> float | None:
        """The learning rate with the least held-out loss, of those that the system offers."""
        rates = self.offered(system)
        if len(rates) < 2:
            return rates[0] if rates else None
        losses, length = {}, self.search_minutes or minutes
        for rate in rates:
            key = {"kind": "search", "system": system.name, "minutes": length, "rate": rate, **self.settings(corpus)}
            if (record := self.results.find(**key)) is None:
                _, spent = self.train(system, corpus, length, 0, rate)
                self.results.add(**key, spent=spent, date=date.today().isoformat())
                record = {"spent": spent}
            losses[rate] = record["spent"]["held_out_loss"]
        return min(losses, key=lambda rate: losses[rate])

    def cell(self, system: System, judge: Judge, minutes: float, seed: int) -> None:
        """Trains, generates, measures and records, unless that is done."""
        corpus = judge.corpus
        key = {"kind": "cell", "system": system.name, "minutes": minutes, "seed": seed, **self.settings(corpus)}
        key["offered"] = list(self.offered(system))
        if self.results.find(**key):
            return
        rate = self.rate(system, corpus, minutes)
        folder, spent = self.train(system, corpus, minutes, seed, rate)
        labels = judge.labels_for(self.clips)
        kept = folder / f"generated_{self.clips}_{self.calls}.pt"
        if not kept.exists():
            torch.save(system.generate(corpus, labels, self.calls, seed, self.device, folder), kept)
        clips = torch.load(kept, weights_only=True)
        self._record(key, judge.distances(clips), judge.accuracy(clips, labels), spent)

    def real(self, judge: Judge) -> None:
        """The figures of real clips, which no system can be expected to pass."""
        key = {"kind": "cell", "system": "real", "minutes": 0.0, "seed": 0, **self.settings(judge.corpus)}
        if not self.results.find(**key):
            self._record(key, **judge.real_rows(self.clips))

    def _record(self, key: dict, kad: dict, accuracy: float | None, spent: dict | None = None) -> None:
        about = {"machine": report.machine(self.device), "date": date.today().isoformat()}
        self.results.add(**key, spent=spent, kad=kad, accuracy=accuracy, **about)
        print(
            f"  {key['system']}: " + ", ".join(f"KAD {name} {_round(one['value'])}" for name, one in kad.items()),
            flush=True,
        )


def _round(value: float | None) -> str:
    return "too few windows" if value is None else f"{value:.2f}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", metavar="FOLDER | NAME=FOLDER")
    parser.add_argument("--minutes", nargs="+", type=float, default=[15.0], help="training time of a cell")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: minutes of the GPU")
    parser.add_argument("--calls", type=int, default=50, help="network calls of a generated clip")
    parser.add_argument("--clips", type=int, default=200, help="generated clips of a cell")
    parser.add_argument("--reference", type=int, default=400, help="largest number of test clips")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates of the peers; default: three")
    parser.add_argument("--search-minutes", type=float, help="length of the trials of a rate; default: the whole time")
    parser.add_argument("--experiments", nargs="*", default=[], metavar="NAME=EXPERIMENT", help="see README.md")
    parser.add_argument("--overrides", nargs="*", default=[], help="options of the experiment; audio.*: of all")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "quality", help="shards, weights and clips")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.jsonl and RESULTS.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is not finished yet, and rewrites RESULTS.md after each cell."""
    options = parse(arguments)
    torch.set_num_threads(1)
    experiments = dict(pair.split("=", 1) for pair in options.experiments)
    found = corpora.find(options.corpora)
    options.output.mkdir(parents=True, exist_ok=True)
    results, work = Results(options.output / "results.jsonl"), options.work.absolute()
    bench = Bench(
        results, work, options.device, options.calls, options.clips, options.reference, tuple(options.overrides),
        tuple(options.rates) if options.rates else None, options.search_minutes,
    )  # fmt: skip
    systems = [SYSTEMS[name] for name in options.systems]
    for system in systems:
        if problem := system.problem():
            print(f"left out: {problem}", flush=True)
    systems = [system for system in systems if not system.problem()]
    head = (HERE / "RESULTS.head.md").read_text(encoding="utf-8")

    def write() -> None:
        (options.output / "RESULTS.md").write_text(report.text(results.records, head), encoding="utf-8")

    judges = {}
    for name, folder in found.items():
        corpus = corpora.prepare(name, folder.absolute(), work, experiments.get(name), options.overrides)
        judges[name] = Judge(corpus, options.reference)
    for seed in options.seeds:  # what is missing after a kill is repeats, not corpora
        for minutes in options.minutes:
            for judge in judges.values():
                bench.real(judge)
                for system in systems:
                    bench.cell(system, judge, minutes, seed)
                    write()
    write()


if __name__ == "__main__":
    main()
