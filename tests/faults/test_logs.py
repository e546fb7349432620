"""W&B that is away, killed or full, and logs that cannot be written: training goes on, the local log is complete."""

import json
import math
import os
import signal
import subprocess
import warnings
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from audio_diffusion.callbacks.jsonl import JsonlLogger
from audio_diffusion.callbacks.loggers import GuardedLogger, log_metrics, log_pictures, wandb_logger

KEY = "0" * 40


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def steps(path: Path) -> list[int]:
    """The steps that have a row of the training loss."""
    return [row["step"] for row in rows(path) if "train/loss" in row]


@pytest.fixture
def server() -> Iterator[Any]:
    spec = spec_from_file_location("wandb_server", Path(__file__).with_name("wandb_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    running = module.MockServer().start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def online(launch, tiny_sampled, drum_shards: Path, tmp_path: Path):
    """online(url, name=.., max_steps=..) -> a launched run that logs to the W&B server at the address."""

    def start(url: str, *arguments: str):
        environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        return launch(
            tmp_path,
            "train.py",
            f"data.train={drum_shards}",
            *tiny_sampled,
            "logger=wandb",
            *arguments,
            env=environment,
        )

    return start


def test_a_server_that_is_away_at_the_start_makes_the_run_offline(online, tmp_path: Path) -> None:
    run = online("http://127.0.0.1:9", "name=one", "max_steps=3", "logger.timeout_s=3")
    assert run.wait() == [0], run.text
    assert "W&B: offline, as the server cannot be reached" in run.text
    assert "wandb login && wandb sync runs/one/wandb/offline-run-*" in run.text
    assert list((tmp_path / "runs/one/wandb").glob("offline-run-*/*.wandb"))
    assert steps(tmp_path / "runs/one") == [1, 2, 3]


def test_a_server_that_goes_away_holds_up_nothing(online, server, tmp_path: Path) -> None:
    run = online(server.url, "name=one", "max_steps=60", "logger.timeout_s=6")
    run.until(lambda: server.runs and (tmp_path / "runs/one/metrics.jsonl").exists())
    server.fail = 500
    assert run.wait() == [0], run.text  # W&B itself would wait for the server for ever
    assert "some data were not sent to the server. To send them later: wandb sync runs/one/wandb/run-" in run.text
    assert steps(tmp_path / "runs/one") == list(range(1, 61))


def test_a_killed_wandb_service_is_a_warning(online, server, tmp_path: Path) -> None:
    run = online(server.url, "name=one", "max_steps=40", "logger.timeout_s=6")
    run.until(lambda: (tmp_path / "runs/one/metrics.jsonl").exists())
    children = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(run.pids[0])], capture_output=True, text=True)
    (service,) = [int(line.split()[0]) for line in children.stdout.splitlines() if "wandb" in line]
    os.kill(service, signal.SIGKILL)
    assert run.wait() == [0], run.text
    assert steps(tmp_path / "runs/one") == list(range(1, 41))
    assert run.text.count("ConnectionResetError: Connection lost. Training continues") == 1
    assert "WandbRun failed" in run.text


class Broken(Logger):
    """A logger of which everything fails."""

    name, version = "broken", ""  # type: ignore[assignment]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise RuntimeError(f"no room at step {step}")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyError("params")

    def save(self) -> None:
        raise OSError(28, "No space left on device")

    def finalize(self, status: str) -> None:
        raise OSError(28, "No space left on device")


def test_each_kind_of_a_loggers_failures_is_said_once_and_counted(make_run, tmp_path: Path) -> None:
    run = make_run(max_steps=3)
    broken, local = GuardedLogger(Broken()), GuardedLogger(JsonlLogger(str(tmp_path)))
    run.trainer.loggers = [broken, local]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run.fit()
        for step in range(3):
            log_metrics(run.trainer, {"a": step})
        broken.log_hyperparams({})
        log_pictures(run.trainer, {})
        broken.finalize("success")
    said = [str(warning.message) for warning in warned if "Broken: " in str(warning.message)]
    assert sum("no room at step" in message for message in said) == 1
    assert sum("KeyError" in message for message in said) == 1
    assert sum("No space left" in message for message in said) == 1
    assert broken.failures["RuntimeError: no room at step N"] == 3
    assert [row["a"] for row in rows(tmp_path)] == [0, 1, 2]


@pytest.fixture
def small_disk(tmp_path: Path, mount) -> Path:
    """A file system of 256 KB; root alone can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "size=256k")
    return disk


def test_a_full_disk_loses_no_row_of_the_local_log(small_disk: Path) -> None:
    logger, filler = GuardedLogger(JsonlLogger(str(small_disk))), small_disk / "filler"
    logger.log_metrics({"a": 0}, step=0)
    filler.write_bytes(bytes(256 * 1024 - 4096 - 4096))
    for step in range(1, 400):
        logger.log_metrics({"a": step, "long name " * 3: math.pi}, step=step)
    assert [kind for kind in logger.failures if "No space left on device" in kind]
    assert 0 < len(rows(small_disk)) < 400  # whole rows only
    filler.unlink()
    logger.log_metrics({"a": 400}, step=400)
    assert [row["a"] for row in rows(small_disk)] == list(range(401))


def test_a_line_cut_off_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    JsonlLogger(str(tmp_path)).log_metrics({"a": 3}, step=3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(lines[0])["a"], json.loads(lines[2])["a"]] == [1, 3]


def test_the_wandb_service_of_whoever_started_the_run_is_not_used(
    launch, tiny, drum_shards: Path, tmp_path: Path
) -> None:
    """As where sbatch is called from a notebook that has a W&B run: its service may be on another machine."""
    arguments = [f"data.train={drum_shards}", *tiny, "name=one", "max_steps=2", "logger=wandb"]
    run = launch(tmp_path, "train.py", *arguments, env={"WANDB_SERVICE": "3-1-unix-/nonexistent/socket"})
    assert run.wait() == [0], run.text
    assert "WandbRun" not in run.text
    assert list((tmp_path / "runs/one/wandb").glob("offline-run-*/*.wandb"))


def test_no_room_for_wandbs_folder_stops_nothing(small_disk: Path, monkeypatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    logger = wandb_logger(str(small_disk), "full", timeout_s=20)
    (small_disk / "filler").write_bytes(bytes(256 * 1024 - 2 * 4096))
    logger.start()
    with pytest.warns(UserWarning, match="data logged from now on may be missing there"):
        logger.log_metrics({"a": 0}, step=0)
    for step in range(1, 300):  # which says so no more
        logger.log_metrics({"a": step, "long name " * 10: step}, step=step)
    logger.finalize("success")
    with pytest.raises(OSError, match="No space left"):  # it was really full
        (small_disk / "more").write_bytes(bytes(64 * 1024))


@pytest.mark.parametrize("timeout_s", [0, -1.0])
def test_a_bad_timeout_is_refused(tmp_path: Path, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s: expected more than 0"):
        wandb_logger(str(tmp_path), "x", timeout_s=timeout_s)
