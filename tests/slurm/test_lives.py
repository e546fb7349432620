"""train.py in jobs of a real cluster: one run through many lives is the run that was never stopped."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from audio_diffusion.checkpoints.folder import newest_verified, step_of

TWO_NODES = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-task=2"]
ENDLESS = [
    "max_steps=1000000", "data.num_workers=1", "callbacks.checkpoint.every_n_steps=50",
    "callbacks.heartbeat.minutes=4",  # should a rank hang, the log says where; a busy machine starts slowly
]  # fmt: skip


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of every step; of a step trained in several lives it must be the same in each."""
    found: dict[int, float] = {}
    file = run_dir / "metrics.jsonl"
    finished, _, _ = (file.read_text() if file.exists() else "").rpartition("\n")  # the last line may be half written
    for row in map(json.loads, finished.splitlines()):
        if "train/loss" in row:
            assert found.setdefault(row["step"], row["train/loss"]) == row["train/loss"], row["step"]
    return found


def last_step(run_dir: Path) -> int:
    """The newest step with a loss, 0 before the first. Reads the end of the file alone, since it is called often."""
    file = run_dir / "metrics.jsonl"
    if not file.exists():
        return 0
    with file.open("rb") as opened:
        begin = max(os.fstat(opened.fileno()).st_size - 16384, 0)
        opened.seek(begin)
        lines = opened.read().split(b"\n")[begin > 0 : -1]  # without a line that is cut, or half written
    return max((row["step"] for row in map(json.loads, lines) if "train/loss" in row), default=0)


def ranks_of(name: str) -> list[int]:
    """The processes of a run's ranks: those of Python that no other one of the run has started."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text().split("\0")
            if command[0].endswith("python") and "train.py" in command and f"name={name}" in command:
                stat = (process / "stat").read_text()
                parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent not in parents]


def test_a_run_goes_on_through_all_that_can_end_a_job(
    submit, slurm_cluster, launch, tiny, drum_shards: Path, project: Path, tmp_path_factory
) -> None:
    run_dir = project / "runs/many_lives"
    options = [f"data.train={drum_shards}", *tiny, *ENDLESS]
    began = time.monotonic()
    job = submit(project, *TWO_NODES, "--time=30", "slurm/train.sh", *options, "logger=wandb", "name=many_lives")

    def live(life: int, steps: int = 10) -> None:
        job.until(lambda: f"start {life}," in job.text)
        before = last_step(run_dir)
        job.until(lambda: last_step(run_dir) > before + steps)

    def queued_again() -> int:
        """Waits for it, and lets the next life begin; the step of the newest checkpoint."""
        job.until(lambda: job.state == "PENDING")
        job.hurry()
        newest = newest_verified(run_dir / "checkpoints").path
        return step_of(newest) if newest else -1

    live(1)
    # 180 s before the limit Slurm warns, as train.sh asks it to: two to three minutes from now, which is at once
    limit = int((time.monotonic() - began) / 60) + 3
    subprocess.run(["scontrol", "update", f"jobid={job.id}", f"timelimit={limit}"], check=True)
    at_limit = queued_again()
    assert f"stopped and saved at step {at_limit}: queueing job {job.id} again" in job.text
    subprocess.run(["scontrol", "update", f"jobid={job.id}", "timelimit=30"], check=True)
    wandb_id = (run_dir / "wandb_id").read_text()

    live(2)
    urgent = submit(project, "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=hostname")
    preempted = queued_again()
    assert f"stopped and saved at step {preempted}: queueing job {job.id} again" in job.text
    assert preempted > at_limit
    assert urgent.ended() == ("COMPLETED", 0)

    live(3, steps=60)  # beyond a checkpoint
    os.kill(ranks_of("many_lives")[-1], signal.SIGKILL)
    killed = queued_again()
    assert "task 1: Killed" in job.text or "task 0: Killed" in job.text
    assert f"at step {killed} (0 of 3 starts without a new checkpoint): queueing job {job.id} again" in job.text
    assert killed > preempted

    live(4, steps=60)
    slurm_cluster("crash", "node2")
    subprocess.run(["scontrol", "update", "nodename=node2", "state=down", "reason=crashed"], check=True)
    job.until(lambda: job.state == "PENDING")
    slurm_cluster("boot", "node2")
    subprocess.run(["scontrol", "update", "nodename=node2", "state=resume"], check=False)
    crashed = queued_again()
    assert crashed > killed

    other = tmp_path_factory.mktemp("other")
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    never_stopped = launch(other, "train.py", *options, *two, "name=never_stopped", ranks=2)  # beside the last life
    live(5)
    subprocess.run(["scancel", job.id], check=True)
    job.until_state("CANCELLED")

    assert (run_dir / "wandb_id").read_text() == wandb_id
    assert len(list((run_dir / "wandb").glob(f"*run-*-{wandb_id}"))) == 5
    trained = losses(run_dir)
    assert sorted(trained) == list(range(1, max(trained) + 1))  # no step is missing
    never_stopped.until(lambda: last_step(other / "runs/never_stopped") >= max(trained), timeout=600)
    never_stopped.kill(signal.SIGKILL)
    expected = losses(other / "runs/never_stopped")
    assert trained == {step: expected[step] for step in trained}


def test_a_job_that_forgets_srun_is_told_so(submit, tiny, drum_shards: Path, project: Path) -> None:
    command = " ".join(["python", "train.py", f"data.train={drum_shards}", *tiny, "name=forgetful"])
    job = submit(project, "--nodes=2", f"--wrap={command}")
    assert job.ended() == ("FAILED", 2), job.text
    assert "error: srun: this job has 2 tasks, but train.py was started once, without srun" in job.text
    assert "sbatch slurm/train.sh" in job.text


def test_tasks_that_are_not_the_devices_are_refused(submit, tiny, drum_shards: Path, project: Path) -> None:
    command = " ".join(["srun", "python", "train.py", f"data.train={drum_shards}", *tiny, "name=mismatch"])
    job = submit(project, "--ntasks=2", "--nodes=2", "-J", "bash", "-o", "job-%j.log", f"--wrap={command}")
    assert job.ended()[0] == "FAILED", job.text
    assert "Slurm has started 2 tasks on 2 nodes, but the options are 1 and 1" in job.text
    assert "Use trainer.devices=1 trainer.num_nodes=2, or request --nodes=" in job.text


def test_sampling_is_a_job_too(submit, tiny, drum_shards: Path, project: Path) -> None:
    options = [f"data.train={drum_shards}", *tiny, "name=short", "max_steps=2"]
    job = submit(project, "--cpus-per-task=1", "slurm/train.sh", *options)
    sampling = ["slurm/run.sh", "sample.py", "ckpt=runs/short", "num_samples=2", "device=cpu"]
    samples = submit(project, "--cpus-per-task=1", f"--dependency=afterok:{job.id}", *sampling)
    assert job.ended() == ("COMPLETED", 0), job.text
    assert samples.ended() == ("COMPLETED", 0), samples.text
    assert len(list((project / "runs/short/generated").glob("*.wav"))) == 2
