"""SaveCheckpoint and its plugin under a real Trainer: what is kept, what happens when a write fails."""

import errno
import math
import os
import threading
from pathlib import Path

import lightning as L
import pytest
import torch

from audio_diffusion.callbacks.checkpoint import SaveCheckpoint, SaveError
from audio_diffusion.callbacks.loggers import log_metrics
from audio_diffusion.checkpoints import files
from audio_diffusion.checkpoints.folder import newest_verified, problem_of
from audio_diffusion.checkpoints.manifest import Manifest, hash_of
from audio_diffusion.inference.checkpoint_reader import find
from audio_diffusion.training.checkpoint_io import AtomicCheckpointIO


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in (run_dir / "checkpoints").iterdir())


def both(*steps: int) -> list[str]:
    return [f"step_{step:08d}.{kind}" for step in steps for kind in ("ckpt", "json")]


def test_the_newest_and_every_nth_are_kept_by_step(make_run, tmp_path):
    save = SaveCheckpoint(str(tmp_path), every_n_steps=2, keep=2, keep_every_n_steps=4)
    make_run(max_steps=11, callbacks=[save]).fit()
    assert names(tmp_path) == both(4, 8, 10, 11)


class LogAtValidation(L.Callback):
    """Logs the next of some values at each validation."""

    def __init__(self, *values: float):
        self.values = iter(values)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        log_metrics(trainer, {"metrics/kad": next(self.values)})


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 6)])
def test_the_best_checkpoint_is_kept_beside_the_newest(make_run, tmp_path, mode, best):
    save = SaveCheckpoint(str(tmp_path), every_n_steps=4, keep=1, monitor="metrics/kad", mode=mode)
    make_run(max_steps=8, val_every=2, callbacks=[LogAtValidation(3.0, 2.0, 5.0, math.nan), save]).fit()
    assert names(tmp_path) == both(8)
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == both(best)
    assert problem_of(tmp_path / "best" / f"step_{best:08d}.ckpt") is None
    assert find(str(tmp_path / "best")).name == f"step_{best:08d}.ckpt"


def test_the_best_value_is_known_after_a_resume(make_run, tmp_path):
    def life(max_steps, *values):
        save = SaveCheckpoint(str(tmp_path), monitor="metrics/kad")
        run = make_run(max_steps=max_steps, val_every=2, callbacks=[LogAtValidation(*values), save])
        run.fit(newest_verified(tmp_path / "checkpoints").path)

    life(2, 3.0)
    life(4, 4.0)
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == both(2)
    life(6, 1.0)
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == both(6)


def test_training_continues_from_the_best_checkpoint_as_if_it_had_not_stopped(make_run, tmp_path):
    weights = []
    for ckpt in (None, tmp_path / "best" / "step_00000004.ckpt"):
        save = SaveCheckpoint(str(tmp_path if ckpt is None else tmp_path / "again"), monitor="metrics/kad")
        run = make_run(max_steps=6, val_every=2, callbacks=[LogAtValidation(3.0, 2.0, 5.0), save])
        run.fit(ckpt)
        weights.append([p.detach().clone() for p in run.module.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_metric_that_is_not_logged_is_named_once(make_run, tmp_path):
    save = SaveCheckpoint(str(tmp_path), monitor="metrics/kat")
    with pytest.warns(
        UserWarning, match=r"no metric 'metrics/kat' has been logged.*Did you mean 'metrics/kad'"
    ) as seen:
        make_run(max_steps=4, val_every=2, callbacks=[LogAtValidation(3.0, 2.0), save]).fit()
    assert sum("metrics/kat" in str(warning.message) for warning in seen) == 1
    assert not (tmp_path / "best").exists()
    with pytest.raises(ValueError, match='mode: expected "min" or "max"'):
        SaveCheckpoint(str(tmp_path), mode="least")


def test_the_manifest_says_what_the_checkpoint_is(make_run, tmp_path):
    recipe = {"batch_size": 4, "b": [1, {"c": None}]}
    make_run(max_steps=2, callbacks=[SaveCheckpoint(str(tmp_path))], recipe=recipe).fit()
    manifest = Manifest.read(tmp_path / "checkpoints" / "step_00000002.json")
    assert (manifest.step, manifest.world_size, manifest.batch_size, manifest.finite) == (2, 1, 4, True)
    assert manifest.config == recipe
    assert manifest.config_sha256 == hash_of({"b": [1, {"c": None}], "batch_size": 4})
    assert manifest.versions["torch"] == torch.__version__
    assert {"python", "lightning", "audio_diffusion"} <= manifest.versions.keys()
    (name,) = manifest.files
    assert manifest.files[name].bytes == (tmp_path / "checkpoints" / name).stat().st_size


class FullDisk:
    """Takes the place of the raw file: so many writes of each checkpoint succeed, then the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC):
        self.full, self.number = True, number
        original = files.HashingFile.__init__

        def init(this, raw):
            original(this, raw)
            raw_write, taken = this._raw.write, [0]

            class Raw:
                def write(_, data):
                    taken[0] += 1
                    if self.full and taken[0] > 40:
                        raise OSError(self.number, os.strerror(self.number))
                    return raw_write(data)

            this._raw = Raw()

        monkeypatch.setattr(files.HashingFile, "__init__", init)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_a_warning_and_is_tried_again(make_run, tmp_path, monkeypatch, number):
    save = SaveCheckpoint(str(tmp_path), every_n_steps=20)
    run = make_run(max_steps=30, callbacks=[save])
    disk = FullDisk(monkeypatch, number)
    started = save.on_train_batch_end

    def free_at_24(trainer, *args):
        save._io(trainer).wait()
        if trainer.global_step == 22:
            assert names(tmp_path) == []
            disk.full = False
        started(trainer, *args)

    save.on_train_batch_end = free_at_24
    with pytest.warns(UserWarning, match=f"step 20 could not be written: .*{os.strerror(number)}. Training continues"):
        run.fit()
    assert names(tmp_path) == both(22, 30)  # not the failed one, the one tried again, the last
    assert {row["checkpoint/failed"] for row in run.rows if "checkpoint/failed" in row} == {1}
    assert len([row for row in run.rows if "checkpoint/write_s" in row]) == 2
    assert len([row for row in run.rows if row.get("checkpoint/pause_ms", 0) > 0]) == 3


def test_a_write_that_fails_while_the_next_save_waits_for_it_is_counted(make_run, tmp_path, monkeypatch):
    run = make_run(max_steps=2, callbacks=[SaveCheckpoint(str(tmp_path), every_n_steps=1)])
    disk, original, waits, said = FullDisk(monkeypatch), files.stage, threading.Event(), []

    def held(path, fill):
        assert waits.wait(60)
        try:
            return original(path, fill)
        finally:
            disk.full = False

    def warn(text):
        said.append(text)
        if "the previous checkpoint is still being written" in text:
            waits.set()

    monkeypatch.setattr("audio_diffusion.checkpoints.folder.stage", held)
    monkeypatch.setattr("audio_diffusion.callbacks.checkpoint.rank_zero_warn", warn)
    run.fit()
    assert len(said) == 2
    assert "step 1 could not be written" in said[1]
    assert names(tmp_path) == both(2)
    assert {row["checkpoint/failed"] for row in run.rows if "checkpoint/failed" in row} == {1}


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_and_the_older_one_stays(make_run, tmp_path, monkeypatch):
    save = SaveCheckpoint(str(tmp_path), every_n_steps=2)
    make_run(max_steps=2, callbacks=[save]).fit()
    FullDisk(monkeypatch)
    with (
        pytest.warns(UserWarning, match="No space left"),
        pytest.raises(
            SaveError,
            match=r"checkpoint of step 3 could not be written to \S+/checkpoints: .*No space left on device "
            r"\(\d+\.\d MB are free in \S+/checkpoints, 0\.\d MB are needed\)\. Older ones are intact",
        ),
    ):
        make_run(max_steps=3, callbacks=[SaveCheckpoint(str(tmp_path))]).fit()
    assert names(tmp_path) == both(2)
    assert problem_of(tmp_path / "checkpoints" / "step_00000002.ckpt") is None


@pytest.mark.parametrize("where", ["net", "ema.net"])
def test_weights_that_are_not_finite_are_never_saved(make_run, tmp_path, where):
    run = make_run(max_steps=2, callbacks=[SaveCheckpoint(str(tmp_path), every_n_steps=1)])
    run.fit()
    broken = make_run(max_steps=1, callbacks=[SaveCheckpoint(str(tmp_path / "broken"))], lr=0.0)
    with torch.no_grad():
        parameters = list(broken.module.get_submodule(where).parameters())
        parameters[-1].view(-1)[0] = torch.inf
    with pytest.warns(UserWarning, match="is not finite"), pytest.raises(SaveError, match="is not finite"):
        broken.fit()
    assert not (tmp_path / "broken" / "checkpoints").exists()
    assert newest_verified(tmp_path / "checkpoints").path.name == "step_00000002.ckpt"


def test_what_is_written_is_the_moment_of_the_save_however_long_writing_takes(make_run, tmp_path, monkeypatch, same):
    """The writer is held until training has changed everything that the checkpoint holds."""
    may_write, original = threading.Event(), files.stage

    def held(path, fill):
        assert may_write.wait(60)
        return original(path, fill)

    monkeypatch.setattr("audio_diffusion.checkpoints.folder.stage", held)
    may_write.set()
    make_run(
        max_steps=3, callbacks=[SaveCheckpoint(str(tmp_path / "at_once"), every_n_steps=2)], recipe={"a": [1]}
    ).fit()
    may_write.clear()
    save = SaveCheckpoint(str(tmp_path / "later"), every_n_steps=2)
    recipe = {"a": [1]}
    run = make_run(max_steps=3, callbacks=[save], recipe=recipe)
    original_end = save.on_train_end

    def release(*args):
        recipe["a"].append(2)
        may_write.set()
        original_end(*args)

    save.on_train_end = release
    run.fit()
    first, second = (
        torch.load(tmp_path / name / "checkpoints" / "step_00000002.ckpt", weights_only=True)
        for name in ("at_once", "later")
    )
    assert same(first, second)


def test_loading_runs_no_code(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    torch.save({"x": Canary()}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)
    assert not (tmp_path / "canary").exists()
