"""kill -9 at random moments of real runs: each goes on, and ends to the bit as if nothing had happened.

AUDIO_DIFFUSION_KILLS=100 python -m pytest tests/faults/test_kills.py      # the soak; CI kills 10 times
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from audio_diffusion.checkpoints.folder import newest_verified, recover, step_of

KILLS = int(os.environ.get("AUDIO_DIFFUSION_KILLS", "10"))
STEPS = 60
BEGUN = ("resuming from", "starting a new run", "is finished")  # one of which every life prints
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


def rows_of(run_dir: Path) -> list[tuple[Any, ...]]:
    """All rows of the log, in order, but speed and counts of what a life has read and written; NaN as a word."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: repr(v) for k, v in row.items() if not k.startswith(("speed/", "checkpoint/", "data/"))} for row in rows
    ]
    return [tuple(sorted(row.items())) for row in kept if len(row) > 1]


def difference(a: Any, b: Any, place: str = "") -> str | None:
    """Where two nested structures differ by as much as a bit, or in a type."""
    if type(a) is not type(b):
        return f"{place}: {type(a)}, {type(b)}"
    if isinstance(a, torch.Tensor):
        return None if a.dtype == b.dtype and torch.equal(a, b) else place
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{place}: {a.keys() ^ b.keys()}"
        return next(filter(None, (difference(a[k], b[k], f"{place}.{k}") for k in a)), None)
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{place}: {len(a)}, {len(b)}"
        return next(
            filter(None, (difference(x, y, f"{place}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))), None
        )
    return None if a == b else f"{place}: {a!r}, {b!r}"


def content(run_dir: Path, step: int = STEPS) -> dict[str, Any]:
    """All that the last checkpoint holds but the name of the run and Lightning's counts of epochs."""
    loaded = torch.load(run_dir / f"checkpoints/step_{step:08d}.ckpt", weights_only=True)
    return {k: v for k, v in loaded.items() if k not in ("config", "loops")}


def same(run_dir: Path, reference: Path) -> None:
    """Weights, EMA, optimizer, schedule, position, sums of the log, and every logged row."""
    assert difference(content(run_dir), content(reference)) is None
    assert rows_of(run_dir) == rows_of(reference)


@pytest.fixture(scope="module")
def arguments(tiny, drum_shards: Path) -> list[str]:
    # rows lie between checkpoints, so that sums go over from one life to the next
    return [
        f"data.train={drum_shards}",
        *tiny,
        f"max_steps={STEPS}",
        "log_every_steps=3",
        "trainer.enable_progress_bar=false",
    ]


def test_runs_killed_at_random_moments_end_as_if_nothing_had_happened(launch, arguments, tmp_path: Path) -> None:
    through = launch(tmp_path, "train.py", *arguments, "name=through")
    assert through.wait() == [0], through.text
    moments, kills, runs, taken_over = random.Random(os.environ.get("AUDIO_DIFFUSION_KILL_SEED", "0")), 0, 0, 0
    while kills < KILLS:
        name, best, alive = f"run{runs}", 0, True
        folder = tmp_path / "runs" / name
        while alive:
            run = launch(tmp_path, "train.py", *arguments, f"name={name}")
            if kills < KILLS:
                if moments.random() < 0.8:  # in training; else from the very start on
                    run.until(lambda run=run: any(words in run.text for words in BEGUN))
                time.sleep(moments.uniform(0, 2.0))
                run.kill(signal.SIGKILL)
            status = run.wait()
            assert status in ([0], [-signal.SIGKILL]), run.text
            alive = status != [0]
            kills += alive
            taken_over += "taken over from" in run.text
            choice = newest_verified(folder / "checkpoints")
            assert step_of(choice.path) >= best if choice.path else best == 0  # nothing good is ever lost
            best = max(best, step_of(choice.path) if choice.path else 0)
        assert best == STEPS
        assert recover(folder / "checkpoints") == []
        assert not (folder / "lock").exists()
        same(folder, tmp_path / "runs" / "through")
        runs += 1
    assert taken_over > 0
    print(
        f"kills survived: {kills} of {KILLS}; runs equal to the bit: {runs} of {runs}; locks taken over: {taken_over}"
    )


def test_two_ranks_killed_together_end_as_if_nothing_had_happened(launch, arguments, tmp_path: Path) -> None:
    through = launch(tmp_path, "train.py", *arguments, *TWO, "name=through", ranks=2)
    assert through.wait() == [0, 0], through.text
    first = launch(tmp_path, "train.py", *arguments, *TWO, "name=killed", ranks=2)
    first.until(lambda: (tmp_path / "runs/killed/checkpoints/step_00000020.json").exists())
    first.kill(signal.SIGKILL)
    assert first.wait() == [-9, -9]
    second = launch(tmp_path, "train.py", *arguments, *TWO, "name=killed", ranks=2)
    assert second.wait() == [0, 0], second.text
    assert "resuming from runs/killed/checkpoints/step_000000" in second.text
    same(tmp_path / "runs" / "killed", tmp_path / "runs" / "through")


def test_a_run_killed_on_one_rank_goes_on_on_two(launch, arguments, tmp_path: Path) -> None:
    """The same clips in the same global batches: the curves agree to rounding, the position exactly."""
    ends = ["max_steps=24"]
    through = launch(tmp_path, "train.py", *arguments, *ends, "name=through")
    assert through.wait() == [0], through.text
    first = launch(tmp_path, "train.py", *arguments, "name=moved")
    first.until(lambda: (tmp_path / "runs/moved/checkpoints/step_00000010.json").exists())
    first.kill(signal.SIGKILL)
    first.wait()
    second = launch(tmp_path, "train.py", *arguments, *ends, *TWO, "name=moved", ranks=2)
    assert second.wait() == [0, 0], second.text
    moved, whole = (rows_of(tmp_path / "runs" / name) for name in ("moved", "through"))
    assert [[key for key, _ in row] for row in moved] == [[key for key, _ in row] for row in whole]
    for row, expected in zip(moved, whole, strict=True):
        assert [float(v) for _, v in row] == pytest.approx([float(v) for _, v in expected], rel=1e-3)
    states = [content(tmp_path / "runs" / name, 24) for name in ("moved", "through")]
    assert states[0]["AudioDataModule"] == states[1]["AudioDataModule"]
