"""Where results go, and what is left of them when Ctrl-C ends a program."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audio_diffusion import Model
from audio_diffusion.cli import config
from audio_diffusion.cli.interruption import CtrlC
from audio_diffusion.cli.options import read
from audio_diffusion.cli.output import beside, claim, default_folder, note_of
from audio_diffusion.cli.requests import samples
from audio_diffusion.cli.tasks.task import make_task
from audio_diffusion.data.held_out import real_clips
from audio_diffusion.data.training_data import TrainingData


def test_an_earlier_folder_is_never_written_into_unasked(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "vary"
    assert claim(wanted) == wanted
    (wanted / "000_kick.wav").write_text("sound")
    assert claim(wanted) == tmp_path / "runs" / "vary_2"
    (tmp_path / "runs" / "vary_3.json").write_text("{}")  # its folder was moved away
    assert claim(wanted) == tmp_path / "runs" / "vary_4"


def test_of_a_folder_that_is_named_it_is_said_what_is_there(tmp_path: Path) -> None:
    assert note_of(tmp_path / "new") is None
    (tmp_path / "old").mkdir()
    assert note_of(tmp_path / "old") is None
    (tmp_path / "old" / "000_kick.wav").write_text("sound")
    assert "old already has 1 file: those with equal names are replaced" in (note_of(tmp_path / "old") or "")
    assert beside(tmp_path / "v1.5", ".json") == tmp_path / "v1.5.json"


@pytest.mark.parametrize(
    ("source", "ckpt", "folder"),
    [
        ("runs/a/checkpoints/step_00000004.ckpt", "runs/a", "runs/a/generated"),
        ("exported/drums", "exported/drums", "exported/drums_generated"),
        ("exported/speech", "exported/speech", "exported/speech_generated"),
        ("step_00000004.ckpt", "step_00000004.ckpt", "step_00000004_generated"),
        ("cache/snapshots/0123", "hub:someone/drums", "someone_drums_generated"),
    ],
)
def test_two_models_do_not_share_a_folder(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, ckpt: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if not source.endswith(".ckpt"):
        Path(source).mkdir(parents=True)
    assert default_folder(replace(model, origin=replace(model.origin, source=Path(source))), ckpt, "generate") == Path(
        folder
    )


def test_ctrl_c_waits_for_what_is_held_and_is_over_after_the_block() -> None:
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a program in the background
    try:
        with CtrlC() as ctrl_c:
            with ctrl_c.held():
                signal.raise_signal(signal.SIGINT)
                done.append("written")
            done.append("never")
        assert ctrl_c.received
        assert done == ["written"]
        with CtrlC() as quiet:
            pass
        assert not quiet.received
    finally:
        signal.signal(signal.SIGINT, before)


def test_files_of_unlike_length_are_padded_and_named(model: Model, tmp_path: Path) -> None:
    for name, length in (("short", 700), ("long", 1000)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(length, 0.5, np.float32), model.sample_rate)
    files = f"input=[{tmp_path / 'short.wav'},{tmp_path / 'long.wav'}]"
    cfg, _ = config.read_command_line("sample", ["task=interpolate", "ckpt=x", files, "at=[0.5]", "num_steps=5"])
    options = read("sample", cfg)
    (sample,) = samples(model, options, make_task(options.task, options.record()))
    short, long = sample.files
    assert short.clip.shape == long.clip.shape == (1, 1000)
    assert not short.clip[:, 700:].any()
    assert short.note == f"0.0375 s of silence added at its end, to match the length of {tmp_path / 'long.wav'}"
    assert not long.note


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"task": "inpaint", "regions": [[0.1, 0.2]]}, [(0.1, 0.2)]),
        ({"task": "outpaint", "before": 0.5, "after": 0.25}, [(0.0, 0.5), (1.5, 1.75)]),
        ({"task": "continue", "seconds": 0.5}, [(1.0, 1.5)]),
        ({"task": "vary", "strength": 0.5}, []),
    ],
)
def test_regenerated_regions_are_shaded(options: dict[str, Any], made: list[tuple[float, float]]) -> None:
    assert make_task(options["task"], options).regenerated(1.0) == made


def test_real_clips_have_their_own_titles(model: Model, drum_shards: Path) -> None:
    data, classes = TrainingData("nowhere"), ["kick", "snare", "gong"]
    shards = str(drum_shards / "val-*.tar")
    found = real_clips(data, shards, model.crop, classes, ["snare", "gong", "kick"], 3)
    assert [title for title, _ in found] == ["snare", "gong", "kick"]
    assert [clip is None for _, clip in found] == [False, True, False]
    assert not torch.equal(found[0][1], found[2][1])  # type: ignore[arg-type]
    (title, clip), *_ = real_clips(data, shards, model.crop, classes, None, 2)
    assert title
    assert clip is not None


@pytest.mark.parametrize("devices", [1, 2])
def test_ctrl_c_keeps_what_is_finished_with_its_json(
    tiny_checkpoint: Path, tmp_path: Path, launch: Callable[..., Any], devices: int
) -> None:
    running = launch(
        tmp_path, "sample.py", f"ckpt={tiny_checkpoint}", "device=cpu", "num_samples=100000", "batch_size=1",
        "output=out", f"devices={devices}",
    )  # fmt: skip
    running.until((tmp_path / "out" / "001_kick.wav").exists)
    os.killpg(running.pids[0], signal.SIGINT)  # as a terminal does, to all processes
    assert running.wait() == [130], running.text
    assert "Traceback" not in running.text
    listed = [row["file"] for row in json.loads((tmp_path / "out.json").read_text())["files"]]
    assert listed == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert f"interrupted: {len(listed)} files finished and kept: out/" in running.text.splitlines()[-1]


def test_processes_of_several_devices_end_with_the_one_that_started_them(
    tiny_checkpoint: Path, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    running = launch(
        tmp_path, "sample.py", f"ckpt={tiny_checkpoint}", "device=cpu", "num_samples=100000", "batch_size=1",
        "output=out", "devices=2",
    )  # fmt: skip
    running.until((tmp_path / "out" / "001_kick.wav").exists)
    (session,) = running.pids
    assert len(_alive_in(session)) > 2
    os.killpg(session, signal.SIGTERM)
    assert running.wait() == [-signal.SIGTERM], running.text
    end = time.monotonic() + 60
    while left := _alive_in(session):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def _alive_in(session: int) -> list[str]:
    """The processes of a session, without those that have ended."""
    listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [args for sid, stat, args in rows if sid == str(session) and not stat.startswith("Z")]


def test_ctrl_c_in_an_evaluation_keeps_the_figures_of_what_is_finished(
    tiny_checkpoint: Path, drum_shards: Path, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    running = launch(
        tmp_path, "evaluate.py", f"ckpt={tiny_checkpoint}", "device=cpu", f"data={drum_shards}/train-*.tar",
        "num_clips=null", "batch_size=1", "metrics.likelihood.bound.num_levels=500", "metrics.likelihood.flow=null",
        "output=out",
    )  # fmt: skip
    running.until(lambda: re.search(r"[1-9]clip", running.text))  # the first of them is done
    os.killpg(running.pids[0], signal.SIGINT)
    assert running.wait() == [130], running.text
    assert "Traceback" not in running.text
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["interrupted"]
    count = found["clips"]["real"]
    assert count >= 1
    clips = f"{count} clip" + "s" * (count > 1)
    said = f"interrupted: the figures are of the {clips} that were finished; kept in out/"
    assert running.text.splitlines()[-1] == said


@pytest.mark.parametrize("program", ["sample.py", "evaluate.py"])
def test_ctrl_c_before_anything_is_made_is_one_line(
    tiny_checkpoint: Path, drum_shards: Path, tmp_path: Path, launch: Callable[..., Any], program: str
) -> None:
    slow = {
        "sample.py": ["num_samples=1", "sampler=ddim", "sampler.num_steps=1000"],
        "evaluate.py": [
            f"data={drum_shards}/train-*.tar",
            "metrics.likelihood.bound.num_levels=100000",
            "metrics.likelihood.flow=null",
        ],
    }[program]
    running = launch(tmp_path, program, f"ckpt={tiny_checkpoint}", "device=cpu", "output=out", *slow)
    running.until(lambda: "0/1" in running.text or "0clip" in running.text)
    os.killpg(running.pids[0], signal.SIGINT)
    assert running.wait() == [130], running.text
    assert "Traceback" not in running.text
    assert running.text.splitlines()[-1].startswith("interrupted: n")
    assert not (tmp_path / "out.json").exists()
