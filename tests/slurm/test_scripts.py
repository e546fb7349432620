"""slurm/*.sh on a real cluster, with a train.py that does little: what they refuse, pass on, queue again, give up."""

import os
import re
import subprocess
import time
from pathlib import Path

TELLS = """
import os, sys
names = ("SLURM_PROCID", "MASTER_PORT", "OMP_NUM_THREADS", "SRUN_CPUS_PER_TASK", "AUDIO_DIFFUSION_STOP_FILE")
print("TOLD", *(f"{name}={os.environ.get(name)}" for name in names), sys.argv[1:], flush=True)
"""
CRASHES = """
import os, pathlib, sys
run = pathlib.Path(os.environ["AUDIO_DIFFUSION_STOP_FILE"]).parent
life = int(os.environ.get("SLURM_RESTART_COUNT", 0))
if life == 0:  # a new checkpoint in the first life, none in later ones
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints/step_00000100.ckpt").touch()
sys.exit(1)
"""
STOPS = """
import os, pathlib, time
stop = pathlib.Path(os.environ["AUDIO_DIFFUSION_STOP_FILE"])
print("training", flush=True)
while not stop.exists():
    time.sleep(0.05)
pathlib.Path(f"{stop}.done").touch()
"""
LOSES_A_RANK = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: None)  # as the real one
print("training", flush=True)
if os.environ["SLURM_PROCID"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""
REFUSES = """
import os, pathlib, sys, time
if os.environ["SLURM_PROCID"] == "1":
    pathlib.Path(os.environ["AUDIO_DIFFUSION_STOP_FILE"] + ".refused").touch()
    sys.exit(2)
time.sleep(600)
"""


def test_what_train_sh_passes_on(submit, scripts) -> None:
    folder = scripts(TELLS)
    two = submit(folder, "--nodes=2", "--cpus-per-task=2", "slurm/train.sh", "experiment=speech", "seed=1")
    beside = submit(folder, "--cpus-per-task=1", "slurm/train.sh", "name=mine", "run_dir=elsewhere/mine")
    assert two.ended() == ("COMPLETED", 0), two.text
    assert beside.ended() == ("COMPLETED", 0), beside.text
    told = [line for line in two.text.splitlines() if line.startswith("TOLD")]
    arguments = f"['trainer.num_nodes=2', 'trainer.devices=1', 'experiment=speech', 'seed=1', 'name=job_{two.id}']"
    for rank in ("0", "1"):
        (line,) = [line for line in told if f"SLURM_PROCID={rank}" in line]
        assert "OMP_NUM_THREADS=1 SRUN_CPUS_PER_TASK=2" in line
        assert f"AUDIO_DIFFUSION_STOP_FILE={folder}/runs/job_{two.id}/stop" in line
        assert arguments in line
        assert f"MASTER_PORT={20000 + int(two.id) % 10000}" in line
    assert f"AUDIO_DIFFUSION_STOP_FILE={folder}/elsewhere/mine/stop" in beside.text
    assert f"MASTER_PORT={20000 + int(beside.id) % 10000}" in beside.text  # both jobs may be on one node


def test_mistakes_are_refused_at_once_with_what_to_type(submit, scripts) -> None:
    folder = scripts(TELLS)
    jobs = {
        "Use --gpus-per-node=2 --ntasks-per-node=2": ["--gpus-per-node=2", "slurm/train.sh"],
        "use --gpus-per-node": ["--gpus-per-node=0", "--gpus-per-task=1", "slurm/train.sh"],
        "sbatch --nodes=2 slurm/train.sh trainer.num_nodes=2 a=1": ["slurm/train.sh", "trainer.num_nodes=2", "a=1"],
        "--time leaves 0 s for training beside SAVE_SECONDS=120": ["--time=1", "slurm/train.sh"],
        "a sweep needs a name": ["slurm/sweep.sh", "seed=0,1"],
        "the array is none-none: use sbatch --array=0-3 slurm/": ["slurm/sweep.sh", "name=s", "a=1,2", "b=1,2"],
        "expected sample.py, evaluate.py or make_shards.py": ["slurm/run.sh", "train.py"],
    }  # fmt: skip
    for message, job in [(message, submit(folder, *command)) for message, command in jobs.items()]:
        assert job.ended(timeout=30) == ("FAILED", 2), (message, job.text)
        assert message in job.text
        assert "TOLD" not in job.text


def test_a_folder_that_a_node_does_not_share_is_refused_naming_the_node(submit, scripts) -> None:
    folder = scripts(TELLS)
    (folder / "runs").mkdir()
    launcher = Path(os.environ["SLURM_TEST_DIR"], "run/node2.pid").read_text().strip()
    (inside,) = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    subprocess.run(["nsenter", "-t", inside, "-m", "mount", "-t", "tmpfs", "none", str(folder / "runs")], check=True)
    job = submit(folder, "--nodes=2", "slurm/train.sh", "name=mine")
    assert job.ended(timeout=30) == ("FAILED", 2), job.text
    assert re.search(r"error: \S*runs/mine/\.seen_by_all\S* is not visible on node node2", job.text)
    assert "node node1" not in job.text
    assert "TOLD" not in job.text


def test_a_sweep_gives_each_combination_a_folder(submit, scripts) -> None:
    folder = scripts(TELLS)
    options = ["name=rates", "lr=1e-3,3e-4", "labels=[a,b]", "seed=0,1"]
    job = submit(folder, "--array=0-3", "--output=%a.log", "slurm/sweep.sh", *options)
    job.until(lambda: sum("TOLD" in path.read_text() for path in folder.glob("?.log")) == 4)
    for i, (lr, seed) in enumerate([("1e-3", 0), ("1e-3", 1), ("3e-4", 0), ("3e-4", 1)]):
        given = f"'name=rates', 'lr={lr}', 'labels=[a,b]', 'seed={seed}', 'name=rates_{i}']"
        assert given in (folder / f"{i}.log").read_text()
        assert (folder / f"runs/rates_{i}").is_dir()
    again = submit(folder, "--array=2", "--output=again.log", "slurm/sweep.sh", *options)
    again.until(lambda: "name=rates_2" in (folder / "again.log").read_text() if (folder / "again.log").exists() else 0)


def test_an_element_of_an_array_is_queued_again_alone(submit, scripts) -> None:
    folder = scripts(STOPS)
    job = submit(folder, "--array=0-1", "--cpus-per-task=1", "--output=%a.log", "slurm/train.sh", "name=array")
    logs = [folder / "0.log", folder / "1.log"]
    job.until(lambda: all(log.exists() and "training" in log.read_text() for log in logs))
    (folder / "runs/array_1/stop").touch()  # the last element has the id of the whole array
    job.until(lambda: f"queueing job {job.id}_1 again" in logs[1].read_text())
    time.sleep(2)
    assert states(job.id) == {"0": "RUNNING", "1": "PENDING"}


def states(array: str) -> dict[str, str]:
    """The state of each element."""
    shown = subprocess.run(
        ["squeue", "-h", "-r", "-j", array, "-o", "%K %T"], check=True, capture_output=True, text=True
    )
    return dict(line.split() for line in shown.stdout.splitlines())


def test_a_crash_is_queued_again_while_there_is_progress_and_then_given_up(submit, scripts) -> None:
    job = submit(scripts(CRASHES), "slurm/train.sh", "name=crashes", env={"MAX_FAILURES": "2"})
    for life in range(2):
        queued = f"({life} of 2 starts without a new checkpoint): queueing job {job.id} again"
        job.until(lambda: queued in job.text)  # noqa: B023
        job.hurry()
    assert job.ended() == ("FAILED", 1)
    assert "given up: 2 starts in a row ended without a checkpoint after step 100, this one with status 1" in job.text


def test_without_a_warning_from_slurm_the_script_watches_the_clock(submit, scripts) -> None:
    options = ["--time=1", "--signal=B:CONT@1", "slurm/train.sh", "name=stops"]
    job = submit(scripts(STOPS), *options, env={"SAVE_SECONDS": "28"})
    begun = time.monotonic()
    job.until(lambda: "stopped and saved at step 0: queueing" in job.text, timeout=120)
    assert time.monotonic() - begun > 20


def test_what_a_rank_refuses_is_not_queued_again(submit, scripts) -> None:
    job = submit(scripts(REFUSES), "--nodes=2", "slurm/train.sh", "name=refuses")
    assert job.ended() == ("FAILED", 2), job.text
    assert "not queued again" in job.text


def test_scancel_is_for_good_also_where_the_run_stops_in_order(submit, scripts) -> None:
    job = submit(scripts(STOPS), "slurm/train.sh", "name=stops")
    job.until(lambda: "training" in job.text)
    subprocess.run(["scancel", job.id], check=True)
    job.until_state("CANCELLED")
    time.sleep(3)
    assert job.state == "CANCELLED"
    assert "queueing" not in job.text


def test_one_rank_killed_ends_the_others_and_is_named(submit, scripts) -> None:
    job = submit(scripts(LOSES_A_RANK), "--nodes=2", "slurm/train.sh", "name=loses")
    job.until(lambda: "training" in job.text)
    job.until_state("PENDING", timeout=120)  # queued again: a first life without progress
    assert "node2: task 1: Killed" in job.text
    assert re.search("how the tasks ended, in order: .*node2: task 1: Killed", job.text)
    assert "a rank was killed: by a user, or because memory ran out" in job.text


def test_the_cause_is_named_whatever_status_srun_has(submit, scripts, tmp_path: Path) -> None:
    """srun's status may be that of the ranks it has ended itself (143), and not of the one that was killed."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (stubs / "srun").write_text(
        "#!/bin/bash\necho 'srun: error: node2: task 1: Killed' >&2\n"
        "echo 'srun: error: node1: task 0: Terminated' >&2\nexit 143\n"
    )
    (stubs / "srun").chmod(0o755)
    env = {"PATH": f"{stubs}:{os.environ['PATH']}", "MAX_FAILURES": "1"}
    job = submit(scripts(TELLS), "slurm/train.sh", "name=killed", env=env)
    assert job.ended() == ("FAILED", 143), job.text
    assert "how the tasks ended, in order: node2: task 1: Killed; node1: task 0: Terminated" in job.text
    assert "a rank was killed: by a user, or because memory ran out" in job.text


def test_containers_are_called_as_their_programs_expect(submit, scripts, tmp_path: Path) -> None:
    folder = scripts(TELLS)
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (stubs / "apptainer").write_text(
        '#!/bin/bash\necho "APPTAINER $*"\nwhile [[ $1 != python ]]; do shift; done\n"$@"\n'
    )
    (stubs / "srun").write_text('#!/bin/bash\necho "SRUN $*"\n')  # pyxis is a plugin of the real one
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    env = {"PATH": f"{stubs}:{os.environ['PATH']}", "CONTAINER_MOUNTS": "/data:/data"}
    pyxis = submit(folder, "slurm/train.sh", "name=pyxis", env={**env, "CONTAINER": "registry#image:tag"})
    assert pyxis.ended() == ("COMPLETED", 0), pyxis.text
    (stubs / "srun").unlink()
    sif = submit(folder, "slurm/train.sh", "name=sif", env={**env, "CONTAINER": "image.sif"})
    assert sif.ended() == ("COMPLETED", 0), sif.text
    mounts = f"--container-mounts={folder}:{folder},/data:/data"
    assert (
        f"--container-image=registry#image:tag --container-workdir={folder} {mounts} python -u train.py" in pyxis.text
    )
    assert f"APPTAINER exec --nv --pwd {folder} --bind {folder},/data:/data image.sif python -u train.py" in sif.text
    assert f"AUDIO_DIFFUSION_STOP_FILE={folder}/runs/sif/stop" in sif.text  # the program inside sees it
