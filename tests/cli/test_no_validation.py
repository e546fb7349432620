"""A data set that holds out nothing: every program copes with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.packing.pack import pack, scan_folder


@pytest.mark.parametrize("options", [["val_every_steps=1"], ["val_every_steps=null"]])
def test_training_sampling_and_evaluation_without_held_out_shards(
    options: list[str], drum_folder: Path, tmp_path: Path, launch: Callable[..., Any], tiny_sampled: list[str]
) -> None:
    pack(scan_folder(drum_folder, True), tmp_path / "all", val_fraction=0)
    run = launch(
        tmp_path, "train.py", *tiny_sampled, "data.train=all", "name=one", "max_steps=2", "run_dir=one", *options
    )
    assert run.wait() == [0], run.text
    said = {
        "val_every_steps=1": "nothing is held out in all: training runs without validation",
        "val_every_steps=null": "no validation, as val_every_steps is null",
    }
    assert said[options[0]] in run.text
    assert "across ranks is zero" not in run.text
    rows = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert not any(name.startswith("val/") for row in rows for name in row)
    assert list((tmp_path / "one" / "samples").rglob("*.wav"))
    made = launch(tmp_path, "sample.py", "ckpt=one", "num_samples=2", "device=cpu")
    assert made.wait() == [0], made.text
    refused = launch(tmp_path, "evaluate.py", "ckpt=one", "device=cpu", "metrics.likelihood.flow=null")
    assert refused.wait() == [2]
    assert "error: data: expected held-out shards (val-*.tar) in all, found none; give shards to eval" in refused.text
    assert "Traceback" not in refused.text
    if options == ["val_every_steps=null"]:
        done = launch(
            tmp_path,
            "evaluate.py",
            "ckpt=one",
            "device=cpu",
            "metrics.likelihood.flow=null",
            "data=all/train-*.tar",
            "num_clips=2",
        )
        assert done.wait() == [0], done.text


def test_validation_may_be_left_out_where_there_are_held_out_shards(
    drum_shards: Path, tmp_path: Path, launch: Callable[..., Any], tiny: list[str]
) -> None:
    every = [option for option in tiny if not option.startswith("val_every_steps")]
    run = launch(tmp_path, "train.py", *every, f"data.train={drum_shards}", "name=one", "run_dir=one", "max_steps=2",
                 "val_every_steps=null")  # fmt: skip
    assert run.wait() == [0], run.text
    rows = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert not any(name.startswith("val/") for row in rows for name in row)
    assert "no validation, as val_every_steps is null" in run.text
