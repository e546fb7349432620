"""What Windows lacks is not needed: packing, training with a spawned worker, and sampling run without it.

But for fcntl, in whose place data/exclusive.py takes msvcrt there: that was run on no Windows.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: run by every Python process before anything else: takes away what Windows does not have
WITHOUT = """
import faulthandler, os, signal

for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "pthread_sigmask"):
    delattr(signal, name)
for name in ("memfd_create", "posix_fadvise", "pread"):
    delattr(os, name)
del faulthandler.register

"""


@pytest.mark.slow
def test_the_programs_run_without_what_windows_lacks(
    drum_folder: Path, tiny_sampled: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "SLURM"))},
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")]), "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "cp1252", "LC_ALL": "C", "PYTHONUTF8": "0",  # neither the console nor files are UTF-8
    }  # fmt: skip

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            cwd=tmp_path, env=environment, capture_output=True, encoding="cp1252", timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("make_shards.py", f"input={drum_folder}", "output=shards")
    options = ["data.num_workers=1", "data.worker_start=spawn", "max_steps=2"]
    run("train.py", "data.train=shards", *tiny_sampled, "name=one", *options)
    run("sample.py", "ckpt=runs/one", "num_samples=1", "device=cpu")
    assert list((tmp_path / "runs" / "one").glob("generated*/*.wav"))
