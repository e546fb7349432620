"""Numbers that go wrong, sampling that fails, secrets, folders that cannot be written to: in real runs."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
POISON = "tests.faults.poison"


def metric(run_dir: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    state = torch.load(run_dir / "checkpoints" / f"step_{step:08d}.ckpt", weights_only=True)["state_dict"]
    return {name: torch.as_tensor(value) for name, value in state.items()}


def test_one_rank_with_a_nan_and_no_memory_to_sample_takes_all_along(
    launch, tiny_sampled, drum_shards: Path, tmp_path: Path
) -> None:
    """A NaN on rank 1 in step 3; rank 1 is out of memory in the round of step 2, twice. Against a run without both."""
    common = [f"data.train={drum_shards}", *tiny_sampled, *TWO, "max_steps=4", "callbacks.sampling.every_n_steps=2"]
    faults = [
        f"callbacks.throughput._target_={POISON}.NanAtStep", "callbacks.throughput.every_n_steps=3",
        "sampler=ddim", "sampler.num_steps=2", f"sampler._target_={POISON}.ddim_out_of_memory",
        "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=4",
    ]  # fmt: skip
    run = launch(tmp_path, "train.py", *common, "name=bad", *faults, ranks=2)
    assert run.wait() == [0, 0], run.text
    bad = tmp_path / "runs/bad"
    assert "step 3 skipped: the loss or the gradient is not finite (norm nan)" in run.text
    assert "Clips of rank 1 whose loss is not finite: " in run.text
    assert metric(bad, "train/skipped_steps")[-1] == 1
    second, third, fourth = (weights(bad, step) for step in (2, 3, 4))
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert not all(torch.equal(third[name], fourth[name]) for name in third)
    assert all(value.isfinite().all() for value in fourth.values())
    assert "sampling: out of memory, trying again one by one" in run.text
    assert "sampling failed; training continues without it." in run.text
    assert metric(bad, "sampling/failures") == [1]
    assert [p.name for p in (bad / "samples").iterdir()] == ["step_00000004"]
    assert len(list((bad / "samples/step_00000004").glob("*.wav"))) == 3


def test_sampling_that_fails_leaves_training_as_it_is(launch, tiny_sampled, drum_shards: Path, tmp_path: Path) -> None:
    common = [f"data.train={drum_shards}", *tiny_sampled, "max_steps=4", "sampler=ddim", "sampler.num_steps=2"]
    fails = ["callbacks.sampling.every_n_steps=2", f"sampler._target_={POISON}.ddim_out_of_memory"]
    runs = [
        launch(tmp_path, "train.py", *common, "name=fails", *fails),
        launch(tmp_path, "train.py", *common, "name=none"),
    ]
    for run in runs:
        assert run.wait() == [0], run.text
    assert metric(tmp_path / "runs/fails", "sampling/failures") == [1]
    a, b = (weights(tmp_path / "runs" / name, 4) for name in ("fails", "none"))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert metric(tmp_path / "runs/fails", "train/loss") == metric(tmp_path / "runs/none", "train/loss")


def test_a_run_that_only_makes_nans_ends_and_leaves_the_checkpoints(
    launch, tiny, drum_shards: Path, tmp_path: Path
) -> None:
    arguments = [f"data.train={drum_shards}", *tiny, "name=one", "representation.scale=1e38"]
    assert launch(tmp_path, "train.py", *arguments, "max_steps=2").wait() == [0]
    before = weights(tmp_path / "runs/one", 2)
    run = launch(tmp_path, "train.py", *arguments, "max_steps=50")
    assert run.wait() == [2], run.text
    assert "error: training: 10 steps in a row were skipped (training.guard.max_skipped_in_a_row)" in run.text
    assert "Traceback" not in run.text.split("error: training")[1]
    newest = max(int(p.stem[5:]) for p in (tmp_path / "runs/one/checkpoints").glob("*.ckpt"))
    after = weights(tmp_path / "runs/one", newest)
    assert newest > 2
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(math.isfinite(loss) for loss in metric(tmp_path / "runs/one", "train/loss"))


def test_no_secret_is_left_in_the_runs_folder(launch, tiny, drum_shards: Path, tmp_path: Path) -> None:
    secrets = ["data.store.storage_options={s3: {key: hunter2, secret: hunter2, endpoint_url: 'http://a:hunter2@b'}}"]
    arguments = [f"data.train={drum_shards}", *tiny, "name=one", "logger=wandb", "max_steps=2", *secrets]
    run = launch(tmp_path, "train.py", *arguments)
    assert run.wait() == [0], run.text
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []
    assert "hunter2" not in run.text
    config = (tmp_path / "runs/one/config.yaml").read_text()
    assert "secret: REDACTED" in config
    assert any(b"REDACTED" in path.read_bytes() for path in files if path.suffix == ".wandb")


@pytest.mark.parametrize("place", ["a file", "a file below", "read-only", "full"])
def test_a_run_folder_that_cannot_be_written_is_found_before_anything_is_begun(
    launch, tiny_sampled, drum_shards: Path, tmp_path: Path, mount, place: str
) -> None:
    run_dir = tmp_path / "disk" / "one"
    run_dir.parent.mkdir()
    options = {"read-only": "ro", "full": "size=1m"}
    if place == "a file":
        run_dir.write_text("")
    elif place == "a file below":
        run_dir.mkdir()
        (run_dir / "samples").write_text("")
    else:
        mount(run_dir.parent, options[place])
    run = launch(tmp_path, "train.py", f"data.train={drum_shards}", *tiny_sampled, "name=one", f"run_dir={run_dir}")
    assert run.wait() == [2], run.text
    assert f"error: run_dir: {run_dir}" in run.text
    assert f"cannot be written to on {os.uname().nodename}" in run.text
    assert "run_dir=FOLDER" in run.text
    assert "Epoch" not in run.text


def test_a_crop_that_the_network_cannot_take_is_found_before_anything_is_begun(
    launch, tiny, drum_shards: Path, tmp_path: Path
) -> None:
    run = launch(tmp_path, "train.py", f"data.train={drum_shards}", *tiny, "name=one", "audio.num_samples=2050")
    assert run.wait() == [2], run.text
    assert "error: audio.num_samples: expected a multiple of " in run.text
    assert "got 2050" in run.text
    assert "Epoch" not in run.text
