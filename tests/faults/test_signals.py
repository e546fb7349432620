"""Signals at any moment, to all ranks or one: the run saves once, leaves, and goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
FOREVER = ["max_steps=1000000", "callbacks.checkpoint.every_n_steps=1000000"]
SLOW_SAMPLING = ["callbacks.sampling.every_n_steps=2", "sampler.num_steps=400"]
SLOW_VALIDATION = ["val_every_steps=2", "callbacks=likelihood", "callbacks.likelihood.num_levels=100"]
ALWAYS_SAVING = ["callbacks.checkpoint.every_n_steps=1"]  # each waits for the one before


def rows(run_dir: Path, name: str = "train/loss") -> dict[int, float]:
    text = (run_dir / "metrics.jsonl").read_text() if (run_dir / "metrics.jsonl").exists() else ""
    finished, _, _ = text.rpartition("\n")  # the last line may be half written
    return {row["step"]: row[name] for row in map(json.loads, finished.splitlines()) if name in row}


def saved(run_dir: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in run_dir.glob("checkpoints/step_*.ckpt"))


@pytest.fixture
def begin(launch, tiny, tiny_sampled, drum_shards: Path, tmp_path: Path) -> Callable:
    """begin(*overrides, ranks=1) -> (run, its folder), once it has trained two steps; a stop file is set."""

    def started(*overrides: str, ranks: int = 1, wait: bool = True, stop_file: bool = True):
        small = tiny_sampled if SLOW_SAMPLING[0] in overrides else tiny
        arguments = [
            f"data.train={drum_shards}",
            *small,
            *(TWO if ranks == 2 else []),
            "name=run",
            *FOREVER,
            *overrides,
        ]
        env = {"AUDIO_DIFFUSION_STOP_FILE": str(tmp_path / "stop")} if stop_file else {}
        run = launch(tmp_path, "train.py", *arguments, ranks=ranks, env=env)
        if wait:
            run.until(lambda: len(rows(tmp_path / "runs/run")) >= 2)
        return run, tmp_path / "runs/run"

    return started


def left_in_order(run, run_dir: Path) -> None:
    """All ranks left alike, with one checkpoint, of the step they stopped at, and asked for a requeue."""
    assert set(run.wait()) == {0}, run.text
    step = saved(run_dir)[-1]
    assert f"stopping at step {step}" in run.text
    assert f"stopped at step {step}, saved in runs/" in run.text
    assert max(rows(run_dir)) == step
    assert (run_dir.parents[1] / "stop.done").exists()
    assert "Traceback" not in run.text, run.text


@pytest.mark.parametrize("to", ["all", "one"])
@pytest.mark.parametrize("where", ["step", "sampling", "validation", "saving"])
def test_two_ranks_save_and_leave_together(begin, where: str, to: str) -> None:
    busy = {"step": [], "sampling": SLOW_SAMPLING, "validation": SLOW_VALIDATION, "saving": ALWAYS_SAVING}[where]
    run, run_dir = begin(*busy, ranks=2)
    time.sleep(0.3)
    signum = signal.SIGTERM if where == "step" else signal.SIGUSR1
    run.kill(signum, ranks=[0, 1] if to == "all" else [1])
    run.kill(signal.SIGTERM, ranks=[1])  # and twice in a row
    left_in_order(run, run_dir)
    assert len(saved(run_dir)) == (2 if where == "saving" else 1)
    if where == "validation":
        assert not rows(run_dir, "val/loss")  # of a part of the clips it would be another number
    if where == "sampling":
        assert not (run_dir / "samples/step_00000002").exists() or saved(run_dir) != [2]


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_workers_and_wandb_never_see_signals_to_the_whole_group(begin, tmp_path: Path, start: str) -> None:
    workers = ["data.num_workers=2", f"data.worker_start={start}", "logger=wandb"]
    run, run_dir = begin(*workers, wait=False)
    run.until(lambda: (run_dir / "config.yaml").exists())
    while run.running:  # from before the first worker is there, to the end
        for signum in (signal.SIGUSR1, signal.SIGTERM):
            try:
                os.killpg(run.pids[0], signum)
            except ProcessLookupError:
                break
        time.sleep(0.02)
    assert run.wait() == [0], run.text
    assert "killed by signal" not in run.text
    assert "Traceback" not in run.text, run.text
    assert (tmp_path / "stop.done").exists()


def test_a_signal_while_starting_is_not_too_early(begin, tmp_path: Path) -> None:
    run, _ = begin(wait=False, ranks=2)
    time.sleep(0.2)
    run.kill(signal.SIGTERM, ranks=[1])
    assert run.wait() == [0, 0], run.text
    assert "SIGTERM received: stopping at step 0" in run.text
    assert (tmp_path / "stop.done").exists()


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_without_a_stop_file_the_status_tells_the_signal(begin, signum: int, status: int) -> None:
    run, run_dir = begin(stop_file=False)
    run.kill(signum)
    assert run.wait() == [status], run.text
    assert len(saved(run_dir)) == 1
    assert "Traceback" not in run.text


def test_the_second_interrupt_ends_it_at_once(begin) -> None:
    run, run_dir = begin(*SLOW_SAMPLING, "callbacks.preemption.every_n_steps=1000000", ranks=2, stop_file=False)
    run.kill(signal.SIGINT)
    run.until(lambda: "once more ends it at once" in run.text)
    run.kill(signal.SIGINT)
    assert run.wait() == [-signal.SIGINT, -signal.SIGINT], run.text
    assert saved(run_dir) == []


def test_a_run_stopped_again_and_again_is_the_run_never_stopped(launch, tiny, drum_shards, tmp_path: Path) -> None:
    common = [f"data.train={drum_shards}", *tiny, "max_steps=24", "val_every_steps=5", "data.num_workers=1"]
    through = launch(tmp_path, "train.py", *common, "name=through")
    lives, stop = 0, tmp_path / "stop"
    while lives == 0 or (tmp_path / "stop.done").exists():
        (tmp_path / "stop.done").unlink(missing_ok=True)
        run = launch(tmp_path, "train.py", *common, "name=run", env={"AUDIO_DIFFUSION_STOP_FILE": str(stop)})
        before = max(rows(tmp_path / "runs/run"), default=0)
        run.until(lambda: not run.running or max(rows(tmp_path / "runs/run"), default=0) > before + 6)  # noqa: B023
        run.kill(signal.SIGUSR1)
        assert run.wait() == [0], run.text
        lives += 1
    assert lives > 1
    assert through.wait() == [0]
    assert rows(tmp_path / "runs/run") == rows(tmp_path / "runs/through")


IN_A_TERMINAL = """
import fcntl, pathlib, signal, termios, threading
from audio_diffusion.checkpoints import signals

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # closing it then sends this process SIGHUP, as a terminal's window does
if {nohup}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
signals.listen()
print("ready", flush=True)
while not signals.received() and not pathlib.Path("closed").exists():
    threading.Event().wait(0.05)
try:
    print("saving", flush=True)
    printed = True
except OSError:
    printed = False
pathlib.Path("said").write_text(f"{{signals.received()}} {{printed}}")
"""


@pytest.mark.parametrize(("nohup", "said"), [(False, f"{int(signal.SIGHUP)} True"), (True, "None False")])
def test_a_closed_terminal_asks_to_stop_but_under_nohup(tmp_path: Path, nohup: bool, said: str) -> None:
    controller, terminal = os.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL.format(nohup=nohup)]
    program = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path, start_new_session=True
    )
    os.close(terminal)
    printed = b""
    while b"ready\r\n" not in printed:  # all of the line: a terminal that is closed within a write fails that write
        printed += os.read(controller, 100)
    os.close(controller)
    if nohup:
        (tmp_path / "closed").touch()
    program.wait(timeout=120)
    assert (tmp_path / "said").read_text() == said
