"""train.py and sample.py as a user runs them: whole processes, on one rank and two."""

import json
import re
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from wandb.proto.wandb_internal_pb2 import Record

ROOT = Path(__file__).parents[2]
TINY = [
    "model.widths=[8,16]", "model.factors=[4]", "model.num_blocks=1", "model.cond_width=16", "model.attention=false",
    "audio.num_samples=2048", "batch_size=4", "val_every_steps=2", "log_every_steps=1", "data.num_workers=0",
    "sampler.num_steps=2", "callbacks.sampling.every_n_steps=2", "callbacks.sampling.num_samples=3",
    "callbacks=likelihood", "callbacks.likelihood.num_clips=6", "callbacks.likelihood.num_levels=2",
    "callbacks.checkpoint.every_n_steps=2", "training.lr_schedule.final_fraction=1.0",
]  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def train(run_program: Run) -> Run:
    """train(cwd, shards, "name=one", ..): train.py with a tiny network, which must succeed."""

    def trained(cwd: Path, shards: Path, *arguments: str) -> subprocess.CompletedProcess:
        done = run_program(cwd, "train.py", f"data.train={shards}", *TINY, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return trained


def metrics(run_dir: Path, name: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


@pytest.fixture(scope="module")
def trained(train: Run, tmp_path_factory: pytest.TempPathFactory, drum_shards: Path) -> Path:
    """A folder with runs/one: four steps on one rank, W&B without credentials."""
    cwd = tmp_path_factory.mktemp("user")
    done = train(cwd, drum_shards, "name=one", "max_steps=4", "trainer=cpu")
    assert "W&B: offline" in done.stdout + done.stderr
    assert "wandb sync runs/one/wandb/offline-run-*" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"val/loss_ema: lowest 0\.\d+ at step [24], last 0\.\d+", done.stdout + done.stderr)
    assert "listen in runs/one/index.html, next: python sample.py ckpt=runs/one" in done.stdout + done.stderr
    return cwd


def test_a_run_leaves_everything_in_its_folder(trained: Path) -> None:
    run_dir = trained / "runs" / "one"
    assert {p.name for p in trained.iterdir() if not p.name.startswith(".")} == {"runs"}
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        f"step_0000000{step}.{kind}" for step in (2, 4) for kind in ("ckpt", "json")
    ]
    assert not (run_dir / "lock").exists()
    assert (run_dir / "samples" / "step_00000004" / "002_kick.wav").is_file()
    page = (run_dir / "index.html").read_text()
    assert page.count('"step":') == 2
    assert "val/bits_per_dim" in page
    assert (run_dir / "page" / "step_00000004" / "002_kick.png").is_file()
    assert "max_steps: 4" in (run_dir / "config.yaml").read_text()
    details = json.loads((run_dir / "details.json").read_text())
    assert details["git_commit"]
    described = details["data"]["train"]
    assert described["clips"]["train"] + described["clips"]["val"] == 40
    assert len(described["manifest_sha256"]) == 64
    assert sorted(metrics(run_dir, "val/loss_ema")) == [2, 4]
    assert sorted(metrics(run_dir, "val/bits_per_dim")) == [2, 4]
    assert {p.name for p in (run_dir / "likelihood").iterdir()} == {"step_00000002.png", "step_00000004.png"}


def records(path: Path) -> Iterator[Record]:
    """The records of a .wandb file: 7 bytes, then 32 KiB blocks of (crc, size, kind, data) as in LevelDB's log."""
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(part)
            part = b""


def test_wandb_holds_audio_pictures_table_config_and_commit(trained: Path) -> None:
    (folder,) = (trained / "runs" / "one" / "wandb").glob("offline-run-*")
    everything = list(records(next(folder.glob("*.wandb"))))
    history = [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
        for r in everything
        if r.WhichOneof("record_type") == "history"
    ]
    media: dict[str, Any] = next(
        row for row in history if "samples/audio" in " ".join(row) or "samples/table" in str(row)
    )
    text = json.dumps(media)
    assert "audio-file" in text
    assert "image-file" in text
    assert "table-file" in text
    assert len(list((folder / "files" / "media" / "audio").rglob("*.wav"))) >= 2 * 3  # two rounds of three slots
    config = "".join(u.value_json for r in everything for u in r.config.update) + "".join(
        u.key for r in everything for u in r.config.update
    )
    assert "git_commit" in config
    assert "num_workers" in config
    assert "manifest_sha256" in config
    assert any("train/loss" in json.dumps(row) for row in history)

    names = [
        {item.key or item.nested_key[0] for item in record.history.item}
        for record in everything
        if record.WhichOneof("record_type") == "history"
    ]
    keys = Counter(key for row in names for key in row if not key.startswith("_") and key != "step")
    assert {key.split("/")[0] for key in keys} == {"train", "val", "samples", "speed", "data", "checkpoint"}
    once = {key for key, count in keys.items() if count < 2}  # of four steps, two validations, rounds and checkpoints
    assert not {key for key in once if not key.startswith("train/loss_t_")}  # a range of t may be met once by chance
    slots = ("samples/000_clap", "samples/001_hat", "samples/002_kick")
    assert all(keys[name] == 2 for name in (*slots, "samples/table", "samples/spectrograms"))
    assert all("step" in row for row in history)
    axes = {
        r.metric.name or r.metric.glob_name: r.metric for r in everything if r.WhichOneof("record_type") == "metric"
    }
    assert axes["*"].step_metric == "step"
    assert axes["val/loss_ema"].summary.min


def test_two_ranks_train_as_one_and_sample_the_same_audio(train: Run, trained: Path, drum_shards: Path) -> None:
    train(
        trained, drum_shards, "name=two", "max_steps=4", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"
    )
    one, two = trained / "runs" / "one", trained / "runs" / "two"
    for name in ("train/loss", "val/loss", "val/loss_ema", "train/grad_norm", "val/bits_per_dim", "val/bits_L_t"):
        assert metrics(one, name) == pytest.approx(metrics(two, name), rel=1e-4)
    folder = Path("samples", "step_00000004")
    files = sorted(p.name for p in (one / folder).iterdir())
    assert files == sorted(p.name for p in (two / folder).iterdir())
    for file in files:
        if file.endswith(".wav"):
            first, second = (soundfile.read(run_dir / folder / file)[0] for run_dir in (one, two))
            np.testing.assert_allclose(first, second, atol=2e-3)
            assert np.abs(first).max() > 0.01


def test_resuming_goes_on_in_the_same_run(train: Run, run_program: Run, trained: Path, drum_shards: Path) -> None:
    through = train(trained, drum_shards, "name=through", "max_steps=6", "trainer=cpu", "logger=csv")
    train(trained, drum_shards, "name=again", "max_steps=4", "trainer=cpu", "logger=tensorboard")
    done = train(trained, drum_shards, "name=again", "max_steps=6", "trainer=cpu", "logger=tensorboard", "ckpt=last")
    assert "starting a new run" in through.stdout + through.stderr
    assert "resuming from runs/again/checkpoints/step_00000004.ckpt" in done.stdout + done.stderr
    counted = [int(n) for n in re.findall(r"(\d+)/6 \[", done.stdout)]
    assert (counted[0], counted[-1]) == (4, 6)  # the bar goes on where it was
    for name in ("train/loss", "val/loss_ema"):
        assert metrics(trained / "runs" / "again", name) == metrics(trained / "runs" / "through", name)
    last = [
        torch.load(trained / f"runs/{n}/checkpoints/step_00000006.ckpt", weights_only=True)
        for n in ("again", "through")
    ]
    for key, value in last[0]["state_dict"].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(last[1]["state_dict"][key])), key
    assert list((trained / "runs" / "through" / "csv").rglob("metrics.csv"))
    assert list((trained / "runs" / "again" / "tensorboard").glob("events.*"))

    refused = run_program(trained, "train.py", f"data.train={drum_shards}", *TINY, "name=again", "ckpt=none")
    assert refused.returncode == 2
    assert "ckpt=none: runs/again already contains step_00000006.ckpt" in refused.stderr


def test_the_same_wandb_run_goes_on(train: Run, trained: Path, drum_shards: Path) -> None:
    before = (trained / "runs" / "one" / "wandb_id").read_text()
    train(trained, drum_shards, "name=one", "max_steps=6", "trainer=cpu")
    assert (trained / "runs" / "one" / "wandb_id").read_text() == before
    folders = list((trained / "runs" / "one" / "wandb").glob(f"offline-run-*-{before}"))
    assert len(folders) == 2


def test_sample_writes_labelled_files_that_do_not_depend_on_the_batch_size(run_program: Run, trained: Path) -> None:
    done = run_program(trained, "sample.py", "ckpt=runs/one", "num_samples=7", "device=cpu")
    assert done.returncode == 0, done.stderr
    folder = trained / "runs" / "one" / "generated"
    names = [f"{i:03d}_{['clap', 'hat', 'kick', 'snare', 'tom'][i % 5]}.wav" for i in range(7)]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert (trained / "runs" / "one" / "generated.png").is_file()
    last = done.stdout.strip().splitlines()[-1]
    assert "runs/one/generated/" in last
    assert "runs/one/generated.png" in last
    assert "EMA weights" in done.stdout

    other = run_program(
        trained, "sample.py", "ckpt=runs/one", "num_samples=7", "batch_size=2", "output=other", "device=cpu"
    )
    assert other.returncode == 0, other.stderr
    for name in names:
        first, second = soundfile.read(folder / name)[0], soundfile.read(trained / "other" / name)[0]
        np.testing.assert_allclose(first, second, atol=1e-3)


def test_check_tells_what_the_schedule_can_do_and_begins_nothing(
    run_program: Run, tmp_path: Path, drum_shards: Path
) -> None:
    done = run_program(tmp_path, "train.py", f"data.train={drum_shards}", "diffusion=linear", "check=true")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "the lowest noise is -40 dB" in said
    assert "warning: the schedule ends at -40 dB" in said
    assert not (tmp_path / "runs").exists()
    refused = run_program(
        tmp_path, "train.py", f"data.train={drum_shards}", "diffusion/parameterization=velocity", "check=true"
    )
    assert refused.returncode == 2
    assert "error: diffusion.parameterization: Velocity expects a schedule that is flow" in refused.stderr


def test_sample_takes_every_kind_of_guidance(run_program: Run, trained: Path) -> None:
    guided = ["guidance_scale=2", "guidance_interval=[0.1,0.9]", "guidance_rescale=0.7", "clip=4", "clip_quantile=0.99"]
    common = ["ckpt=runs/one", "num_samples=2", "device=cpu", "sampler=heun", "sampler.num_steps=2"]
    done = run_program(trained, "sample.py", *common, *guided, "negative=kick", "output=negative")
    assert done.returncode == 0, done.stderr
    weak = f"weak_ckpt={min((trained / 'runs' / 'one' / 'checkpoints').glob('step_*.ckpt'))}"
    done = run_program(trained, "sample.py", *common, *guided, weak, "output=weak")
    assert done.returncode == 0, done.stderr
    both = [soundfile.read(trained / name / "001_hat.wav")[0] for name in ("negative", "weak")]
    assert not np.array_equal(*both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ckpt=runs/one", "negative=kik"], "negative: 'kik' is not a label of this model. Did you mean 'kick'?"),
        (["ckpt=runs/one", "labels=[kik]"], "label 'kik' is unknown to this model. Did you mean 'kick'?"),
        (["ckpt=nowhere.ckpt"], "ckpt: expected a checkpoint file, but 'nowhere.ckpt' does not exist"),
        (["ckpt=runs/one/config.yaml"], "ckpt: 'runs/one/config.yaml' cannot be read as plain data"),
        (["ckpt=runs/one", "num_samples=abc"], "num_samples: expected int, got 'abc'"),
        (["ckpt=runs/one", "guidance_interval=[0]"], "guidance_interval: expected two times, [0, 1], got [0]"),
        (["ckpt=runs/one", "device=gpu"], "device: expected auto, cpu, cuda, cuda:1 .., got 'gpu'"),
        (["ckpt=runs/one", "num_samples=0"], "num_samples: expected at least 1, got 0"),
        (["ckpt=runs/one", "weights=best"], 'weights: expected "ema" or "raw", got \'best\''),
        (["num_samples=3"], "ckpt"),
    ],
)
def test_sample_says_what_is_wrong(run_program: Run, trained: Path, arguments: list[str], message: str) -> None:
    done = run_program(trained, "sample.py", "device=cpu", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


FEW = ("metrics.likelihood.bound.num_levels=2", "metrics.likelihood.flow.tolerance=0.1", "device=cpu")


def test_evaluate_prints_and_writes_bits_that_agree_with_training(
    run_program: Run, trained: Path, drum_shards: Path
) -> None:
    (step,) = [int(p.stem[5:]) for p in sorted((trained / "runs/one/checkpoints").iterdir())][-1:]
    done = run_program(trained, "evaluate.py", "ckpt=runs/one", "num_clips=6", *FEW)
    assert done.returncode == 0, done.stderr
    for words in ("variational bound", "L_0", "probability-flow ODE", "white Gaussian", "evaluation.json", "EMA"):
        assert words in done.stdout
    folder = trained / "runs" / "one" / "evaluation"
    assert (folder / "noise_levels.png").is_file()
    results = json.loads((folder / "evaluation.json").read_text())
    assert (results["step"], results["clips"]["real"], results["metrics"]["likelihood"]["clips"]) == (step, 6, 6)
    bound, flow = results["metrics"]["likelihood"]["bound"], results["metrics"]["likelihood"]["flow"]
    assert results["metrics"]["likelihood"]["dimensions"] == 6 * 2048
    assert bound["bits_per_dim"] == pytest.approx(metrics(trained / "runs/one", "val/bits_per_dim")[step], rel=1e-4)
    assert flow["monte_carlo_error"] is None  # one repeat
    assert 0 < flow["bits_per_dim"] < 50  # a network after few steps may do worse than the 16 bits of the file

    other = run_program(
        trained, "evaluate.py", "ckpt=runs/one", f"data={drum_shards}", "num_clips=6", "batch_size=4", "output=other",
        *FEW,
    )  # fmt: skip
    assert other.returncode == 0, other.stderr
    again = json.loads((trained / "other" / "evaluation.json").read_text())["metrics"]["likelihood"]
    assert again["bound"]["bits_per_dim"] == pytest.approx(bound["bits_per_dim"], rel=1e-4)
    assert again["flow"]["bits_per_dim"] == pytest.approx(flow["bits_per_dim"], rel=1e-3)


def test_evaluate_compares_generated_clips_and_folders_with_real_ones(
    run_program: Run, trained: Path, drum_shards: Path
) -> None:
    def evaluated(*options: str) -> tuple[str, dict]:
        done = run_program(trained, "evaluate.py", *options, "output=compared", "device=cpu")
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads((trained / "compared" / "evaluation.json").read_text())

    fast = ["sampler=ddim", "sampler.num_steps=2", "num_generated=7"]
    printed, found = evaluated("ckpt=runs/one", "metrics=[kad,signal,copies]", "num_clips=5", "num_train=6", *fast)
    assert found["clips"] == {"real": 5, "train": 6, "generated": 7}
    assert list(found["metrics"]) == ["distances", "signal", "copies"]
    assert found["metrics"]["distances"]["figures"]["kad"]["value"] is None
    assert "too few: " in printed
    pictures = {path.name for path in (trained / "compared").glob("*.png")}
    assert pictures == {"spectrum.png", "copies.png"}
    again = evaluated("ckpt=runs/one", "metrics=[signal]", "num_clips=5", "batch_size=2", *fast)[1]
    ours, theirs = (x["metrics"]["signal"]["figures"]["rms_dbfs"]["value"] for x in (found, again))
    assert ours == pytest.approx(theirs, abs=1e-3)  # the same clips, whatever the batch

    sounds = trained / "sounds"
    sounds.mkdir()
    for i, gain in enumerate((0.1, 0.2, 0.3)):
        soundfile.write(sounds / f"{i}.wav", gain * np.sin(np.arange(4000) / 3), 16000)
    (sounds / "no.wav").write_bytes(b"RIFF")
    for real in ("sounds", f"{drum_shards}/train-*.tar"):
        printed, found = evaluated("folder=sounds", f"reference={real}", "metrics=[signal]", "num_clips=3")
        assert "sounds/no.wav: " in printed
        assert found["clips"]["generated"] == 3
        assert found["metrics"]["signal"]["generated"]["values"]["rms_dbfs"]["count"] == 3
    refused = run_program(trained, "evaluate.py", "folder=sounds", "reference=sounds")
    assert "metrics.likelihood: expected a model" in refused.stderr


def test_evaluate_measures_samplers_steps_and_guidance_against_network_calls(run_program: Run, trained: Path) -> None:
    sweep = ["sweep.num_steps=[2,4]", "sweep.sampler=[ddim,heun]", "sweep.guidance_scale=[1,2]"]
    few = ["metrics=[signal]", "num_clips=3", "output=swept", "device=cpu"]
    done = run_program(trained, "evaluate.py", "ckpt=runs/one", *few, *sweep)
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "swept" / "evaluation.json").read_text())
    rows = {(row["sampler"], row["num_steps"], row["guidance_scale"]): row for row in found["sweep"]}
    assert len(rows) == 8
    assert rows["ddim", 2, 1]["network_calls"] == 2
    assert rows["ddim", 4, 2]["network_calls"] == 8  # with and without the conditions
    assert rows["ddim", 4, 1]["figures"]["rms_dbfs"]["value"] != rows["heun", 4, 1]["figures"]["rms_dbfs"]["value"]
    assert all(row["real_time_factor"] > 0 for row in rows.values())
    assert found["metrics"] == {}
    assert (trained / "swept" / "sweep.png").is_file()
    alone = ["sampler=ddim", "sampler.num_steps=4", "guidance_scale=2"]
    assert run_program(trained, "evaluate.py", "ckpt=runs/one", *few, *alone).returncode == 0
    figures = json.loads((trained / "swept" / "evaluation.json").read_text())["metrics"]["signal"]["figures"]
    assert figures["rms_dbfs"]["value"] == rows["ddim", 4, 2]["figures"]["rms_dbfs"]["value"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ckpt=runs/one", "sweep.sampler=[ddin]"], "sweep.sampler: there is no sampler 'ddin'. Did you mean 'ddim'"),
        (["ckpt=runs/one", "sweep.num_steps=[0]"], "sweep.num_steps: expected at least 1, got 0"),
        (["ckpt=runs/one", "sweep.num_steps=[a]"], "sweep.num_steps: expected int, got 'a'"),
        (["ckpt=runs/one", "sweep.num_steps=[2]"], "sweep: expected a metric that compares generated clips"),
        (["ckpt=nowhere.ckpt"], "ckpt: expected a checkpoint file, but 'nowhere.ckpt' does not exist"),
        (["ckpt=runs/one", "data=nowhere-*.tar"], "error: data: shards: expected files at 'nowhere-*.tar'"),
        (["ckpt=runs/one", "num_clips=0"], "num_clips: expected at least 1, got 0"),
        (
            ["ckpt=runs/one", "metrics.likelihood.bound.num_levels=0"],
            "metrics.likelihood.bound.num_levels: expected at least 1, got 0",
        ),
        (
            ["ckpt=runs/one", "metrics.likelihood.flow.tolerance=2"],
            "metrics.likelihood.flow.tolerance: expected between 0 and 1, got 2",
        ),
        (["ckpt=runs/one", "metrics.likelihood.flow.tolerence=2"], "Did you mean 'tolerance'?"),
        (
            ["ckpt=runs/one", "metrics.likelihood.flow=null", "metrics.likelihood.bound=null"],
            "metrics.likelihood.bound, flow: both are null",
        ),
        (["ckpt=runs/one", "flow.tolerance=2"], "flow.tolerance=2: write metrics.likelihood.flow.tolerance=2"),
        (["ckpt=runs/one", "metrics=[]"], "metrics: expected at least one"),
        (["ckpt=runs/one", "metrics=[likelyhood]"], "Did you mean 'likelihood'?"),
        ([], "ckpt: expected a model, ckpt=RUN, or a folder of audio, folder=AUDIO; got neither"),
        (["folder=nowhere", "reference=x"], "folder: expected a folder of audio files, but 'nowhere' does not exist"),
        (["folder=."], "reference: expected shards or a folder of audio to compare folder with"),
    ],
)
def test_evaluate_says_what_is_wrong(run_program: Run, trained: Path, arguments: list[str], message: str) -> None:
    done = run_program(trained, "evaluate.py", "device=cpu", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
