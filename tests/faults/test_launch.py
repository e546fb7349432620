"""Runs of train.py that the other fault tests start from: on one rank and two, to the end and killed."""

import signal
from pathlib import Path


def test_a_launched_run_is_a_run(launch, tiny, drum_shards: Path, tmp_path: Path) -> None:
    run = launch(tmp_path, "train.py", f"data.train={drum_shards}", *tiny, "name=one", "max_steps=4")
    assert run.wait() == [0], run.text
    names = [p.name for p in (tmp_path / "runs/one/checkpoints").iterdir()]
    assert {"step_00000002.ckpt", "step_00000004.ckpt"} <= set(names)


def test_two_launched_ranks_are_one_run_and_can_be_killed(launch, tiny, drum_shards: Path, tmp_path: Path) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    arguments = [f"data.train={drum_shards}", *tiny, *two, "name=two", "max_steps=100000"]
    run = launch(tmp_path, "train.py", *arguments, ranks=2)
    run.until(lambda: list((tmp_path / "runs/two/checkpoints").glob("step_*.ckpt")))
    run.kill(signal.SIGKILL)
    assert run.wait() == [-9, -9]
    assert "error:" not in run.text
    assert "Traceback" not in run.text
