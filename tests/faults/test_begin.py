"""What a run begins from: its own checkpoint, another's, or weights alone; what cannot be used is said in a line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from audio_diffusion.checkpoints.folder import all_in
from audio_diffusion.cli import config, run_folder
from audio_diffusion.cli.train import begin
from audio_diffusion.cli.train_options import TrainOptions
from audio_diffusion.inference import checkpoint_reader


@pytest.fixture
def train(launch, tiny, drum_shards: Path, tmp_path: Path):
    """train("name=one", ..) -> what train.py printed, in tmp_path; its exit status must be as expected."""
    common = [f"data.train={drum_shards}", *tiny, "trainer.enable_progress_bar=false"]

    def run(*arguments: str, status: int = 0) -> str:
        run = launch(tmp_path, "train.py", *common, *arguments)
        assert run.wait() == [status], run.text[-3000:]
        assert "Traceback" not in run.text
        if status:
            (said,) = [part for part in run.text.split("error: ")[1:]]
            return said.strip()
        return run.text

    return run


def rows_with(run_dir: Path, name: str) -> list[dict]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if name in row]


def test_a_finished_run_says_so_and_lives_count_on(train, tmp_path: Path) -> None:
    accumulated = ["name=one", "trainer.accumulate_grad_batches=2"]
    train(*accumulated, "max_steps=2", "trainer.precision=32-true")
    details = tmp_path / "runs/one/details.json"
    details.write_text(details.read_text().replace('"git_commit": "', '"git_commit": "older-'))
    again = train(*accumulated, "max_steps=4", "trainer.gradient_clip_val=0.5", "trainer.precision=bf16-mixed")
    assert "changed since step_00000002.ckpt: trainer.gradient_clip_val: 1.0 before, 0.5 now" in again
    assert "changed since step_00000002.ckpt: trainer.precision: '32-true' before, 'bf16-mixed' now" in again
    assert "changed since the run was last started: git_commit: 'older-" in again
    clips = rows_with(tmp_path / "runs/one", "data/clips")
    assert [(row["step"], row["data/clips"]) for row in clips] == [(1, 4), (2, 8), (3, 12), (4, 16)]
    assert [row["step"] for row in rows_with(tmp_path / "runs/one", "speed/data_wait_percent")] == [1, 2, 3, 4]

    done = train(*accumulated, "max_steps=4")
    assert "runs/one is finished: step_00000004.ckpt is at step 4, max_steps=4. To continue: max_steps=8" in done
    said = train("name=two", "ckpt=runs/one", "max_steps=3", status=2)
    assert said.startswith("ckpt: runs/one/checkpoints/step_00000004.ckpt is at step 4, and steps are counted on")
    assert "Write max_steps=7; or init=runs/one/checkpoints/step_00000004.ckpt in place of ckpt" in said
    on = train("name=two", "ckpt=runs/one/checkpoints", "max_steps=5")
    assert "resuming from runs/one/checkpoints/step_00000004.ckpt" in on


def test_a_checkpoint_that_cannot_be_resumed_from_is_refused_in_a_line(
    train, tiny, tmp_path: Path, monkeypatch
) -> None:
    train("name=one", "max_steps=2")
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "runs/one/checkpoints/step_00000002.ckpt"
    torch.save({"weights": torch.zeros(3)}, tmp_path / "others.ckpt")
    (tmp_path / "text.ckpt").write_text("a text")
    for name in ("no_manifest.ckpt", "step_00000009.ckpt"):
        shutil.copy(good, tmp_path / name)
    labels = ["clap", "hat", "kick", "snare", "tom"]
    with initialize_config_dir(str(config.CONFIG_DIR), version_base="1.3"):
        for options, message in {
            ("ckpt=text.ckpt",): "ckpt: 'text.ckpt' cannot be read as plain data: it is not a checkpoint",
            ("ckpt=others.ckpt",): "ckpt: 'others.ckpt' was not written by this project's training",
            (
                "ckpt=step_00000009.ckpt",
            ): "'step_00000009.ckpt' is the checkpoint of step 2: call it step_00000002.ckpt",
            (
                "ckpt=no_manifest.ckpt",
                "model.cond_width=32",
            ): "ckpt: no_manifest.ckpt has another network; restore these",
            (
                "ckpt=runs/one",
                "training/optimizer=sgd",
            ): "torch.optim.SGD, as it is configured now, also needs momentum_",
            (
                "ckpt=runs/one/checkpoints",
                "training/optimizer=rmsprop",
            ): "also needs square_avg. Set training.optimizer",
            ("ckpt=runs/one", "max_steps=2"): "Write max_steps=4; or init=runs/one/checkpoints/step_00000002.ckpt",
            ("ckpt=no_manifest.ckpt",): "",
            ("ckpt=runs/one/checkpoints", "training/optimizer=adam"): "",
        }.items():
            overrides = [*tiny, "name=two", "max_steps=20", f"classes=[{','.join(labels)}]", *options]
            given = TrainOptions.of(compose("train", overrides=overrides))
            found, problem = run_folder._prepare(given, "unknown")
            assert message in problem, problem
            assert (found is None) == bool(message)
            assert len(problem.splitlines()) <= 2  # what differs stands below


def test_init_takes_the_weights_alone_and_names_what_is_new(train, tmp_path: Path) -> None:
    train("name=one", "max_steps=2")
    said = train("name=two", "max_steps=1", "init=runs/one", "init_weights=raw", "training.optimizer.lr=0.0")
    assert "init: 73 weights from runs/one/checkpoints/step_00000002.ckpt, step 2, RAW" in said
    assert "starting a new run" in said
    one, two = (torch.load(all_in(tmp_path / f"runs/{n}/checkpoints")[-1], weights_only=True) for n in ("one", "two"))
    for name, value in two["state_dict"].items():
        if name.startswith("net."):  # a step of length 0 was trained since
            assert torch.equal(value, one["state_dict"][name])
            assert torch.equal(two["state_dict"][f"ema.{name}"], value)
    assert two["global_step"] == 1

    again = train("name=two", "max_steps=2", "init=runs/one")
    assert "init=runs/one is ignored, as this run has begun; it resumes from its own step_00000001.ckpt" in again

    others = train("name=three", "max_steps=1", "init=runs/one", "classes=[gong,kick]", "callbacks.checkpoint=null")
    assert "init: new embeddings for the labels gong; those of kick are taken" in others
    assert "callbacks.checkpoint=null: no checkpoint is written" in others
    assert not all_in(tmp_path / "runs/three/checkpoints")


def test_what_init_cannot_take_is_said() -> None:
    given = TrainOptions.of(config.read_command_line("train", ["name=x", "init=nowhere", "classes=[]"])[0])
    with pytest.raises(config.ConfigError, match=r"^init: expected a checkpoint file, but 'nowhere' does not exist"):
        begin(None, replace(given, init_weights="ema"), None)
    with pytest.raises(config.ConfigError, match=r"^init_weights: expected ema or raw, got 'best'"):
        begin(None, replace(given, init_weights="best"), None)


def test_a_debug_run_leaves_the_real_one_alone_and_can_be_repeated(train, tmp_path: Path) -> None:
    debug = ["name=one", "max_steps=100", "trainer=debug"]
    for _ in range(2):
        said = train(*debug)
        assert "to step 4, in runs/one_debug/" in said
        assert "starting a new run" in said
    said = train("name=one", "max_steps=6", "logger=null", "trainer.limit_val_batches=1")
    assert "starting a new run" in said
    with pytest.raises(
        config.ConfigError, match=r"ckpt=overwrite: \S+ contains step_00000006\.ckpt, which is beyond the 4 steps"
    ):
        run_folder._remove_checkpoints(tmp_path / "runs/one", 4)


def test_overwriting_removes_the_weights_of_an_earlier_attempt_and_nothing_else(tmp_path: Path) -> None:
    for folder in ("checkpoints", "best", "ema", "best_average", "samples"):
        (tmp_path / folder).mkdir()
        for name in ("step_00000002.ckpt", "step_00000002.json", "notes.txt"):
            (tmp_path / folder / name).write_text("x")
    run_folder._remove_checkpoints(tmp_path, 4)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert left == {
        "checkpoints/notes.txt", "best/notes.txt", "ema/notes.txt", "best_average/notes.txt", "samples/notes.txt",
        "samples/step_00000002.ckpt", "samples/step_00000002.json",
    }  # fmt: skip


def test_what_older_versions_took_for_a_secret_can_be_given(tmp_path: Path, monkeypatch) -> None:
    parts = {name: {} for name in ("model", "representation", "diffusion", "sampler")}
    config_of_old = {**parts, "model": {"encoder": "REDACTED/enc"}, "data": {"train": "REDACTED/shards"}}
    with pytest.raises(config.ConfigError, match=r"model\.encoder = 'REDACTED/enc'.*AUDIO_DIFFUSION_REDACTED=FOLDER"):
        checkpoint_reader._completed(config_of_old, tmp_path)
    monkeypatch.setenv("AUDIO_DIFFUSION_REDACTED", "/there")
    completed = checkpoint_reader._completed(config_of_old, tmp_path)
    assert (completed["model"]["encoder"], completed["data"]["train"]) == ("/there/enc", "/there/shards")
