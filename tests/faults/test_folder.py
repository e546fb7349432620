"""The run's folder under real runs: two jobs in it, checkpoints that went bad, disks that are full, other settings."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from audio_diffusion.checkpoints.folder import all_in, newest_verified, step_of


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def train(launch, tiny, drum_shards: Path, tmp_path: Path):
    """train("name=one", ..) -> a launched run of train.py in tmp_path."""
    common = [f"data.train={drum_shards}", *tiny, "trainer.enable_progress_bar=false"]

    def started(*arguments: str, env: dict[str, str] | None = None):
        return launch(tmp_path, "train.py", *common, *arguments, env=env)

    return started


def test_a_second_job_in_the_folder_is_refused_before_it_does_anything(train, tmp_path: Path) -> None:
    first = train("name=one", "max_steps=100000")
    first.until(lambda: all_in(tmp_path / "runs/one/checkpoints"))
    second = train("name=one", "max_steps=100000", "seed=1")
    assert second.wait() == [2]
    said = second.text[second.text.index("error: ") :]
    assert re.match(
        rf"error: run_dir: runs/one belongs to another job that is running: process {first.pids[0]} on \S+, since", said
    )
    assert "choose another name=" in said
    assert "Traceback" not in said
    assert "seed: 0" in (tmp_path / "runs/one/config.yaml").read_text()
    assert first.running
    first.kill()
    first.wait()
    third = train("name=one", "max_steps=2")
    assert third.wait() == [0]
    assert f"taken over from process {first.pids[0]}" in third.text


def test_of_two_jobs_that_start_at_once_one_trains(train, tmp_path: Path) -> None:
    jobs = [train("name=two", "max_steps=100000") for _ in range(2)]
    end = time.monotonic() + 120
    while all(job.running for job in jobs) and time.monotonic() < end:
        time.sleep(0.05)
    (winner,) = [job for job in jobs if job.running]
    (refused,) = [job for job in jobs if not job.running]
    assert refused.wait() == [2]
    assert "belongs to another job that is running" in refused.text
    winner.until(lambda: all_in(tmp_path / "runs/two/checkpoints"))
    winner.kill()


def test_a_run_falls_back_from_broken_checkpoints_and_refuses_where_none_is_good(train, tmp_path: Path) -> None:
    assert train("name=one", "max_steps=6").wait() == [0]
    folder = tmp_path / "runs/one/checkpoints"
    flip(folder / "step_00000006.ckpt")
    again = train("name=one", "max_steps=8", "ckpt=last", "batch_size=8")
    assert again.wait() == [0], again.text
    assert "step_00000006.ckpt: sha256 differs" in again.text
    assert "falling back to step_00000004.ckpt" in again.text
    assert "resuming from runs/one/checkpoints/step_00000004.ckpt" in again.text
    assert "changed since step_00000004.ckpt: batch_size: 4 before, 8 now" in again.text
    assert "rows of steps that are trained again were removed" in again.text

    other = train("name=one", "max_steps=8", "model.widths=[8,24]")
    assert other.wait() == [2]
    assert "has another network; restore these options, or choose another name=" in other.text
    assert "model.widths: [8, 16] before, [8, 24] now" in other.text

    older = train("name=one", f"ckpt={folder}/step_00000006.ckpt", "max_steps=9")
    assert older.wait() == [2]
    assert "also contains step_00000008.ckpt, and a restart of this run would resume from it" in older.text

    for path in folder.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    none = train("name=one", "max_steps=8")
    assert none.wait() == [2]
    assert "none of them is valid" in none.text
    assert "step_00000008.ckpt: has 1000 bytes, of" in none.text


def test_a_run_that_begins_from_another_goes_on_from_its_own_when_it_is_started_again(train, tmp_path: Path) -> None:
    assert train("name=one", "max_steps=2").wait() == [0]
    first = train("name=two", "max_steps=4", "ckpt=runs/one")
    assert first.wait() == [0], first.text
    assert "resuming from runs/one/checkpoints/step_00000002.ckpt" in first.text
    again = train("name=two", "max_steps=6", "ckpt=runs/one")
    assert again.wait() == [0], again.text
    assert "resuming from runs/two/checkpoints/step_00000004.ckpt" in again.text


@pytest.fixture
def small_disk(tmp_path: Path, mount) -> Path:
    """A file system of 8 MB, where this user may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount(folder, "size=8m")
    return folder


def test_a_run_goes_on_while_the_disk_is_full_and_later_resumes(train, tmp_path: Path, small_disk: Path) -> None:
    """Two checkpoints of 350 kB fit, a third does not, as the disk shrinks to 1 MB once the run has found it writable.
    TMPDIR is the full disk too: it is not used."""
    run_dir = tmp_path / "runs/one"
    run_dir.mkdir(parents=True)
    (run_dir / "checkpoints").symlink_to(small_disk)
    full = train("name=one", "max_steps=12", env={"TMPDIR": str(small_disk)})
    full.until((run_dir / "lock").exists)
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert full.wait() == [1], full.text
    assert "step 6 could not be written: [Errno 28] No space left on device. Training continues" in full.text
    errors = [line for line in full.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in full.text
    assert errors[0].startswith("error: the checkpoint of step 12 could not be written to runs/one/checkpoints: ")
    assert re.search(r"No space left on device \(0\.\d MB are free in .*, 0\.\d MB are needed\)", errors[0]), errors[0]
    assert "`max_steps=12` reached" in full.text
    assert sorted(p.name for p in small_disk.iterdir()) == [
        f"step_0000000{step}.{kind}" for step in (2, 4) for kind in ("ckpt", "json")
    ]
    assert '"checkpoint/failed": 1' in (run_dir / "metrics.jsonl").read_text()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    later = train("name=one", "max_steps=12", env={"TMPDIR": str(small_disk)})
    assert later.wait() == [0], later.text
    assert "resuming from runs/one/checkpoints/step_00000004.ckpt" in later.text
    assert step_of(newest_verified(small_disk).path) == 12
