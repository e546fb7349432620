"""DataLoader workers: they begin however busy the threads of their trainer are, or are named; none outlives it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from audio_diffusion.data import workers
from audio_diffusion.data.workers import ShieldedLoader

STARTS = int(os.environ.get("AUDIO_DIFFUSION_WORKER_STARTS", "20"))  # more of them make a stress test


class Numbers(Dataset):
    """0 .. length-1."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> int:
        return i


class HangsInWorkers(Numbers):
    """Its unpickling, which is what a worker begins with, does not end the first ``times`` times."""

    def __init__(self, length: int, folder: Path, times: int):
        super().__init__(length)
        self.folder, self.times = folder, times

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        for i in range(self.times):
            marker = self.folder / str(i)
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                continue
            threading.Event().wait()


def busy(stop: threading.Event) -> None:
    """Takes the locks that a fork may inherit: of the import system, malloc, and the pools of numpy."""
    import importlib

    import numpy as np

    rng = np.random.default_rng(0)
    while not stop.is_set():
        importlib.reload(importlib.import_module("colorsys"))
        a = rng.standard_normal((64, 64))
        (a @ a).sum()
        [bytearray(n) for n in range(1, 2000, 7)]


@pytest.mark.slow
def test_no_worker_hangs_beside_busy_threads() -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=busy, args=(stop,), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(STARTS // 4):
            loader = ShieldedLoader(Numbers(8), batch_size=None, num_workers=4)
            assert list(loader) == list(range(8))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_are_forked_from_a_process_of_one_thread() -> None:
    from multiprocessing import forkserver

    batches = iter(ShieldedLoader(Numbers(8), batch_size=None, num_workers=1))
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert server is not None
    assert "\nThreads:\t1\n" in Path(f"/proc/{server}/status").read_text()
    assert f"\nPPid:\t{server}\n" in Path(f"/proc/{batches._workers[0].pid}/status").read_text()  # type: ignore[attr-defined]
    assert list(batches) == list(range(8))


def test_a_worker_that_does_not_answer_is_replaced(tmp_path: Path, monkeypatch, capfd) -> None:
    assert list(ShieldedLoader(Numbers(2), batch_size=None, num_workers=1)) == [0, 1]  # the fork server has its imports
    monkeypatch.setitem(workers.ANSWERS_WITHIN_S, workers.DEFAULT_START, 15.0)
    loader = ShieldedLoader(HangsInWorkers(20, tmp_path, times=1), batch_size=None, num_workers=2)
    assert list(loader) == list(range(20))
    printed = capfd.readouterr().err
    assert "did not answer within 15 s of its start; starting another one" in printed
    assert "data: worker " in printed


def test_a_worker_that_never_answers_ends_the_run_with_its_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(workers.ANSWERS_WITHIN_S, workers.DEFAULT_START, 1.0)
    loader = ShieldedLoader(HangsInWorkers(20, tmp_path, times=100), batch_size=None, num_workers=1)
    with pytest.raises(
        RuntimeError, match=r"worker 0 \(process \d+\) did not answer within 1 s .* the 2 started before it did not"
    ):
        iter(loader)


class Environment(Numbers):
    """Item i is a variable of the environment of the process that reads it."""

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        return os.environ.get("AUDIO_DIFFUSION_TEST", "none")


def test_workers_have_the_environment_of_their_trainer(monkeypatch) -> None:
    workers.prepare()
    monkeypatch.setenv("AUDIO_DIFFUSION_TEST", "set later")
    assert list(ShieldedLoader(Environment(1), batch_size=None, num_workers=1)) == ["set later"]


def run(folder: Path, script: str) -> subprocess.Popen:
    file = folder / "script.py"
    file.write_text(textwrap.dedent(script))
    return subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_workers_end_with_a_trainer_that_was_killed(tmp_path: Path, start: str) -> None:
    script = f"""
        from torch.utils.data import Dataset
        from audio_diffusion.data.workers import ShieldedLoader
        import threading

        if __name__ == "__main__":
            loader = ShieldedLoader(range(1000), batch_size=None, num_workers=2, multiprocessing_context="{start}")
            batches = iter(loader)
            print(*(worker.pid for worker in batches._workers), flush=True)
            threading.Event().wait()
    """
    trainer = run(tmp_path, script)
    assert trainer.stdout is not None
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    end = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < end, "workers outlived their trainer by a minute"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_script_without_a_guard_trains_once_and_its_own_classes_reach_the_workers(tmp_path: Path) -> None:
    unguarded = run(
        tmp_path,
        """
        from audio_diffusion.data.workers import ShieldedLoader
        print("started", flush=True)
        print(sum(ShieldedLoader(range(10), batch_size=None, num_workers=2)))
        """,
    )
    assert unguarded.communicate(timeout=120)[0].split() == ["started", "45"]
    own_class = run(
        tmp_path,
        """
        from audio_diffusion.data.workers import ShieldedLoader

        class Squares:
            def __len__(self):
                return 4
            def __getitem__(self, i):
                return i * i

        if __name__ == "__main__":
            print(sum(ShieldedLoader(Squares(), batch_size=None, num_workers=2)))
        """,
    )
    assert own_class.communicate(timeout=120)[0].split() == ["14"]
