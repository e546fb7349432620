"""What does a recipe learn in the same number of steps? Trains each, measures it, writes a table.

    python benchmarks/recipes/run.py benchmarks/recipes/drums.yaml [--seeds 0 1 2] [--data SHARDS] [--only NAME ..]

The file names an experiment and the trials: options of train.py by which each differs. Trials share the data, the
number of steps and the seeds. evaluate.py measures each: KAD of generated clips against held-out ones, and bits per
dimension. Where the clips have labels, benchmarks/learnt.py has a classifier of real clips name the generated ones.
The CPU time of training is measured too, as a recipe may be better only because its steps cost more.

A trial that is measured is kept in results/NAME.json beside the file and not run again; the table, NAME.md, holds all.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What was measured of one trial with one seed."""

    seed: int
    kad: float
    kad_low: float
    kad_high: float
    bits_per_dim: float
    named: float | None  # share of generated clips named as asked, or None without labels
    cpu_minutes: float
    made: str  # date and machine


def run(script: str, *arguments: str, check: bool = True) -> str:
    """Runs a program and returns its output; an error ends this program with the last lines of its own."""
    done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{script} {' '.join(arguments)}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def cpu_seconds() -> float:
    """CPU time of the programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def slug(name: str) -> str:
    """A name as part of a folder's name."""
    return re.sub(r"[^\w]+", "_", name.lower()).strip("_")


def measure(name: str, options: list[str], plan: dict[str, Any], seed: int) -> Result:
    """Trains and measures one trial."""
    run_dir = f"runs/recipes/{slug(plan['experiment'])}/{slug(name)}_{seed}"
    before = cpu_seconds()
    run("train.py", f"experiment={plan['experiment']}", f"run_dir={run_dir}", f"seed={seed}", "trainer=cpu",
        "logger=csv", "ckpt=overwrite", "callbacks.sampling=null", "val_every_steps=null",
        *plan.get("options", []), *options)  # fmt: skip
    minutes = (cpu_seconds() - before) / 60
    count = plan.get("num_generated", 100)
    run("evaluate.py", f"ckpt={run_dir}", "metrics=[likelihood,kad]", "metrics.likelihood.flow=null", "num_clips=null",
        f"num_generated={count}", f"embedding={plan.get('embedding', 'log_mel')}")  # fmt: skip
    found = json.loads((ROOT / run_dir / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    kad, bits = found["kad"]["figures"]["kad"], found["likelihood"]["figures"]["bits_per_dim"]
    judged = run("benchmarks/learnt.py", f"ckpt={run_dir}", f"num_samples={count}", check=False)
    named = re.search(r"^classifier on \d+ generated clips +([\d.]+)%", judged, re.M)
    return Result(
        seed=seed, kad=kad["value"], kad_low=kad["interval"][0], kad_high=kad["interval"][1],
        bits_per_dim=bits["value"], named=float(named[1]) / 100 if named else None, cpu_minutes=minutes,
        made=f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores",
    )  # fmt: skip


def spread(values: list[float], digits: int) -> str:
    """The mean, and the standard deviation over seeds if there are several."""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def row(name: str, options: list[str], results: list[Result]) -> str:
    """A row of the table."""
    kad = spread([r.kad for r in results], 1)
    if len(results) == 1:
        kad += f" [{results[0].kad_low:.1f}, {results[0].kad_high:.1f}]"
    named = [100 * r.named for r in results if r.named is not None]
    return (
        f"| {name} | `{' '.join(options) or '-'}` | {kad} | {spread([r.bits_per_dim for r in results], 2)} | "
        f"{spread(named, 0) + ' %' if named else '-'} | {spread([r.cpu_minutes for r in results], 1)} | "
        f"{len(results)} |"
    )


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="a file such as benchmarks/recipes/drums.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", help="shards to train on; default: the experiment's")
    parser.add_argument("--only", nargs="+", help="names of trials; default: all")
    given = parser.parse_args()
    plan = yaml.safe_load(given.plan.read_text(encoding="utf-8"))
    if given.data:
        plan["options"] = [*plan.get("options", []), f"data.train={given.data}"]
    if unknown := set(given.only or []) - set(plan["trials"]):
        sys.exit(f"--only: expected names among {', '.join(plan['trials'])}, got {', '.join(sorted(unknown))}")
    store = given.plan.parent / "results" / f"{given.plan.stem}.json"
    kept: dict[str, list[dict[str, Any]]] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    for name, options in plan["trials"].items():
        for seed in given.seeds:
            done = any(result["seed"] == seed for result in kept.get(name, []))
            if done or (given.only and name not in given.only):
                continue
            print(f"{name}, seed {seed} ..", flush=True)
            kept.setdefault(name, []).append(asdict(measure(name, options, plan, seed)))
            store.parent.mkdir(exist_ok=True)
            store.write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")
    rows = [
        row(name, options, [Result(**r) for r in kept[name]])
        for name, options in plan["trials"].items()
        if name in kept
    ]
    shared = " ".join([f"experiment={plan['experiment']}", *plan.get("options", [])])
    table = "\n".join(rows)
    text = f"""# Recipes: {given.plan.stem}

Made by `python benchmarks/recipes/run.py {given.plan}`: every trial with `{shared}` and the options of its row. KAD by
{plan.get("embedding", "log_mel")} of {plan.get("num_generated", 100)} generated clips against the held-out ones (less
is better; ± over seeds, or the 95 % interval over clips), bits per dimension of held-out clips by the variational
bound, the share of generated clips that a classifier of real ones names as asked, and CPU minutes of training.

| recipe | options | KAD | bits/dim | named as asked | CPU min | seeds |
|---|---|---|---|---|---|---|
{table}
"""
    given.plan.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
