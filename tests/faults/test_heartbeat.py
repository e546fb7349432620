"""A run that is stuck says where it is stuck, on all ranks, and ends with a status that has the job queued again."""

import os
import signal
import time
from pathlib import Path

import pytest

from audio_diffusion.callbacks.cluster.heartbeat import STUCK, Heartbeat

SOON = ["callbacks.heartbeat.minutes=0.05", "max_steps=1000000", "callbacks.checkpoint.every_n_steps=1000000"]


def test_where_one_rank_stands_still_the_others_say_so_and_leave(launch, tiny, drum_shards, tmp_path: Path) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    run = launch(tmp_path, "train.py", f"data.train={drum_shards}", *tiny, *two, "name=run", *SOON, ranks=2)
    run.until(lambda: '"step": 3' in text_of(tmp_path / "runs/run/metrics.jsonl"))
    run.kill(signal.SIGSTOP, ranks=[1])
    run.until(lambda: len(run.running) == 1)
    run.kill(signal.SIGKILL, ranks=[1])  # as srun does
    assert run.wait() == [STUCK, -signal.SIGKILL]
    assert "rank 0 (process" in run.text
    assert "last after step" in run.text
    assert "callbacks.heartbeat.minutes=0.05" in run.text
    assert "in advance" in run.text  # of Lightning's loop: the main thread's stack


def test_a_read_that_never_returns_is_named(launch, tiny, drum_shards: Path, tmp_path: Path) -> None:
    longer = "callbacks.heartbeat.minutes=0.4"  # than it takes to start a worker
    arguments = [f"data.train={drum_shards}", *tiny, "name=run", *SOON, longer, "data.num_workers=1"]
    run = launch(tmp_path, "train.py", *arguments)
    run.until(lambda: (tmp_path / "runs/run/metrics.jsonl").exists())
    (worker,) = [  # a child of the fork server
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(parent(pid)) == run.pids[0]
    ]
    os.kill(worker, signal.SIGSTOP)
    run.until(lambda: "Stacks of its worker" in run.text)
    os.kill(worker, signal.SIGCONT)
    assert run.wait() == [STUCK]
    assert f"Stacks of its worker, process {worker}:" in run.text
    assert "_worker_loop" in run.text  # the worker's own stack


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def test_a_run_that_moves_or_was_suspended_as_a_whole_is_left_alone(
    launch, tiny_sampled, drum_shards, tmp_path: Path
) -> None:
    slow = ["sampler.num_steps=400", "callbacks.sampling.every_n_steps=20", "callbacks.sampling.num_samples=20"]
    arguments = [f"data.train={drum_shards}", *tiny_sampled, "name=run", *SOON, *slow]
    run = launch(tmp_path, "train.py", *arguments)
    run.until(lambda: (tmp_path / "runs/run/metrics.jsonl").exists())
    run.kill(signal.SIGSTOP)
    time.sleep(4)
    run.kill(signal.SIGCONT)
    time.sleep(4)
    run.kill(signal.SIGTERM)
    assert run.wait() == [143], run.text
    assert "stuck" not in run.text


def test_minutes_are_positive() -> None:
    with pytest.raises(ValueError, match="minutes: expected more than 0, got 0"):
        Heartbeat(minutes=0)
