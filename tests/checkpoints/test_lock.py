"""One owner of a run's folder: live, dead, on another host, and many at the same moment."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from audio_diffusion.checkpoints import lock
from audio_diffusion.checkpoints.lock import DEAD_AFTER_S, Locked, Owner, RunLock


def leave(folder: Path, owner: Owner, silent_s: float = 0.0) -> None:
    """A lock as ``owner`` has left it, without a heartbeat for so long."""
    (folder / "lock").write_text(json.dumps(asdict(owner)))
    then = time.time() - silent_s
    os.utime(folder / "lock", (then, then))


def elsewhere(**changes) -> Owner:
    """An owner whose process cannot be looked up from here."""
    return replace(Owner.this_process(), token="other", machine="another boot", host="node7", **changes)


def test_a_second_owner_is_refused_and_told_of_the_first(tmp_path):
    with RunLock(tmp_path) as first:
        with pytest.raises(Locked) as refused, RunLock(tmp_path):
            pass
        for words in (
            f"process {os.getpid()} on",
            first.owner.since,
            "last heartbeat was 0 s ago",
            "choose another name=",
        ):
            assert words in str(refused.value)
        assert first._is_ours()
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path) as again:
        assert again.taken_over is None


@pytest.mark.slow
def test_one_that_ended_without_a_word_is_taken_over(tmp_path):
    code = (
        f"import os; from pathlib import Path; from audio_diffusion.checkpoints.lock import RunLock\n"
        f"with RunLock(Path({str(tmp_path)!r})): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert (tmp_path / "lock").exists()
    with RunLock(tmp_path) as second:
        assert "that process has ended" in second.taken_over
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("owner", "silent_s", "reason"),
    [
        (
            lambda: replace(Owner.this_process(), token="x", started="1"),
            0,
            "that process has ended",
        ),  # its id used again
        (lambda: elsewhere(), DEAD_AFTER_S + 30, "no heartbeat for 21"),
        (lambda: elsewhere(job="77", life=1), 0, "it was an earlier start of this job"),
    ],
)
def test_dead_owners_are_taken_over(tmp_path, monkeypatch, owner, silent_s, reason):
    leave(tmp_path, owner(), silent_s)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with RunLock(tmp_path) as mine:
        assert reason in mine.taken_over
        assert Owner.read(mine.path) == mine.owner


@pytest.mark.parametrize(
    "owner",
    [
        elsewhere,
        lambda: elsewhere(job="77", life=2),  # two programs of one life of a job
        lambda: elsewhere(job="78", life=0),
        lambda: replace(Owner.this_process(), token="x"),
    ],
)
def test_owners_that_may_live_are_not(tmp_path, monkeypatch, owner):
    leave(tmp_path, owner(), 100)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.raises(Locked), RunLock(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_lock_that_cannot_be_read_waits_for_its_heartbeat(tmp_path):
    (tmp_path / "lock").write_text("{")
    with pytest.raises(Locked, match="unknown"), RunLock(tmp_path):
        pass
    os.utime(tmp_path / "lock", (1, 1))
    with RunLock(tmp_path):
        pass


def _race(folder: str, start, results, all_in) -> None:
    start.wait()
    try:
        with RunLock(Path(folder)):
            results.put("owner")
            assert all_in.wait(60)
    except Locked:
        results.put("refused")


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "a dead owner"])
def test_of_many_that_start_at_the_same_moment_one_is_let_in(tmp_path, left):
    context = multiprocessing.get_context("fork")
    for round_number in range(4):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        if left == "a dead owner":
            leave(folder, elsewhere(), 2 * DEAD_AFTER_S)
        start, results, all_in = context.Barrier(6), context.Queue(), context.Event()
        racers = [context.Process(target=_race, args=(str(folder), start, results, all_in)) for _ in range(6)]
        for racer in racers:
            racer.start()
        outcomes = [results.get(timeout=60) for _ in racers]
        all_in.set()
        for racer in racers:
            racer.join()
        assert sorted(outcomes) == ["owner"] + ["refused"] * 5
        assert list(folder.iterdir()) == []


def test_without_hard_links_it_works_as_well(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(lock.os, "link", no_links)
    with RunLock(tmp_path), pytest.raises(Locked), RunLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with RunLock(tmp_path) as mine:
        os.utime(mine.path, (1, 1))
        end = time.monotonic() + 10
        while mine._age() > 5:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_an_owner_that_was_taken_for_dead_ends_at_once(tmp_path):
    code = (
        "import time; from pathlib import Path; from audio_diffusion.checkpoints import lock; lock.BEAT_S = 0.02\n"
        f"with lock.RunLock(Path({str(tmp_path)!r})): print('in', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "in\n"
    other = tmp_path / "new"
    other.write_text(json.dumps(asdict(elsewhere())))
    other.replace(tmp_path / "lock")
    _, said = first.communicate(timeout=20)
    assert first.returncode == 3
    assert "was taken over by process" in said
    assert (tmp_path / "lock").exists()
