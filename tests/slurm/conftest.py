"""A real Slurm cluster of two nodes on this machine, for all tests of this folder, and jobs on it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("cluster")


@dataclass
class Job:
    """A job that was submitted; its log is read from where it was submitted."""

    id: str
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def state(self) -> str:
        """RUNNING, PENDING, COMPLETED, FAILED, CANCELLED .."""
        shown = slurm("scontrol", "show", "job", self.id, "--oneliner")
        return next(word[9:] for word in shown.split() if word.startswith("JobState="))

    def ended(self, timeout: float = 300.0) -> tuple[str, int]:
        """Waits for the end; the state, and the exit status of the script."""
        state = self.until_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout=timeout)
        shown = slurm("scontrol", "show", "job", self.id, "--oneliner")
        return state, int(next(word[9:] for word in shown.split() if word.startswith("ExitCode=")).split(":")[0])

    def until(self, condition: Callable[[], Any], timeout: float = 300.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"not within {timeout:g} s; {self.state}:\n{self.text[-30000:]}"
            time.sleep(0.1)

    def until_state(self, *states: str, timeout: float = 300.0) -> str:
        self.until(lambda: self.state in states, timeout)
        return self.state

    def hurry(self) -> None:
        """Lets a job that was queued again start now, instead of in two minutes."""
        cluster("hurry", self.id)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def cluster(*command: str) -> str:
    ended = subprocess.run([str(CLUSTER), *command], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")  # not "session": its environment would reach the tests of other folders
def slurm_cluster(require: Callable[[str], None]) -> Iterator[Callable[..., str]]:
    """The cluster is up; slurm_cluster("crash", "node2") runs its script."""
    require("slurm")
    folder = Path(os.environ.get("TMPDIR", "/tmp"), f"slurm-{os.getpid()}")  # short: it holds a socket
    port = 16817 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # each process has a cluster of its own
    mine = {
        "SLURM_TEST_DIR": str(folder), "SLURM_TEST_CPUS": "8", "SLURM_TEST_PORT": str(port),
        "SLURM_CONF": str(folder / "slurm.conf"),
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(mine)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
    # jobs get the environment of sbatch
    os.environ.update({"PYTHONPATH": str(ROOT / "src"), "NETRC": os.devnull, "WANDB_MODE": "offline"})
    try:
        cluster("up")
        yield cluster
    finally:
        cluster("down")
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def submit(slurm_cluster: Callable[..., str]) -> Iterator[Callable[..., Job]]:
    """submit(folder, "--nodes=2", .., "slurm/train.sh", "name=x", env={}) -> Job, submitted from the folder."""
    jobs: list[Job] = []

    def submitted(folder: Path, *command: str, env: Mapping[str, str] | None = None) -> Job:
        answer = subprocess.run(
            ["sbatch", "--parsable", "--output=%x-%j.log", "--job-name=job", *command],
            cwd=folder,
            env={**os.environ, **(env or {})},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        id = answer.stdout.strip().split(";")[0]
        jobs.append(Job(id, folder / f"job-{id}.log"))
        return jobs[-1]

    yield submitted
    for job in jobs:
        subprocess.run(["scancel", job.id], capture_output=True, timeout=60)


def _project(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that jobs are submitted from, as a checkout of the project."""
    return _project(tmp_path, "train.py", "sample.py", "evaluate.py", "make_shards.py", "slurm")


@pytest.fixture
def scripts(tmp_path: Path) -> Callable[[str], Path]:
    """scripts(text) -> such a folder with this text as its train.py, which imports nothing heavy."""

    def made(text: str) -> Path:
        (tmp_path / "train.py").write_text(text)
        return _project(tmp_path, "slurm")

    return made
