"""Early stopping: when a run ends, what it says, and that resuming changes nothing."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from audio_diffusion.callbacks.checkpoint import SaveCheckpoint
from audio_diffusion.callbacks.early_stopping import StopEarly, finished_early, record_early_stop
from audio_diffusion.callbacks.jsonl import JsonlLogger
from audio_diffusion.callbacks.loggers import log_metrics
from audio_diffusion.callbacks.validations import ValidationCount
from audio_diffusion.checkpoints.folder import all_in, path_of


class LogFigure(L.Callback):
    """Logs the value of the step at each validation that has one, also in metrics.jsonl, as all runs do."""

    def __init__(self, folder: Path, values: dict[int, float]):
        self.rows, self.values = JsonlLogger(str(folder)), values

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if step in self.values:
            log_metrics(trainer, {"metrics/kad": self.values[step]})
            self.rows.log_metrics({"metrics/kad": self.values[step]}, step)


#: at steps 2, 4, ..; the best value is that of step 4
VALUES = [5.0, 3.0, 3.5, 3.2, 4.0, 3.0, 2.95, 3.0, 3.0, 3.0]


def life(make_run: Any, folder: Path, ckpt: int | None = None, **options: Any) -> tuple[int, StopEarly]:
    """A run of at most 20 steps, from the checkpoint of a step; returns its last step, and its callback."""
    values = dict(zip(range(2, 21, 2), options.pop("values", VALUES), strict=False))
    stop = StopEarly(**{"folder": str(folder), "monitor": "metrics/kad", "patience": 3, **options})
    save = SaveCheckpoint(str(folder), every_n_steps=3, keep=11)
    run = make_run(max_steps=20, val_every=2, callbacks=[LogFigure(folder, values), stop, save])
    run.fit(path_of(folder / "checkpoints", ckpt) if ckpt else None)
    record_early_stop(run.trainer, folder)
    return run.trainer.global_step, stop


def test_a_run_ends_and_is_saved_where_it_no_longer_improves_and_continues_with_more_patience(
    make_run: Any, tmp_path: Path
) -> None:
    step, stop = life(make_run, tmp_path)
    assert step == 10
    assert stop.reason == "metrics/kad has not improved on 3 (step 4) in 3 validations"
    assert all_in(tmp_path / "checkpoints")[-1].name == "step_00000010.ckpt"
    options = {"monitor": "metrics/kad", "mode": "min", "min_delta": 0.0, "patience": 3}
    assert (finished_early(tmp_path, 10, options) or "").endswith("To continue: callbacks.early_stopping.patience=6")
    assert finished_early(tmp_path, 9, options) is None  # an older checkpoint
    for change in ({"patience": 5}, {"monitor": "val/loss"}, {"min_delta": 0.1}):
        assert finished_early(tmp_path, 10, {**options, **change}) is None

    rows = (tmp_path / "metrics.jsonl").read_text()
    for ckpt in (3, 6):  # that of step 6 was saved before the validation of step 6
        (tmp_path / "metrics.jsonl").write_text(
            "".join(r for r in rows.splitlines(True) if json.loads(r)["step"] <= ckpt)
        )
        again, other = life(make_run, tmp_path, ckpt)
        assert (again, other.state_dict()) == (step, stop.state_dict())

    through, uninterrupted = life(make_run, tmp_path / "through", patience=5)
    longer, resumed = life(make_run, tmp_path, ckpt=10, patience=5)
    assert (longer, resumed.state_dict()) == (through, uninterrupted.state_dict())
    assert resumed.best == 2.95


def counted(mode: str, min_delta: float, values: list[float], patience: int = 2) -> list[int]:
    stop, waited = StopEarly(".", "x", mode, patience, min_delta), []
    for step, value in enumerate(values):
        stop._count(step, value)
        waited.append(stop.waited)
    return waited


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "waited"),
    [
        ("min", 0.0, [3, 2, 2, 1], [0, 0, 1, 0]),
        ("max", 0.0, [3, 2, 4, 4], [0, 1, 0, 1]),
        ("min", 0.5, [3, 2.6, 2.4, 2.0], [0, 1, 0, 1]),
        ("min", 0.0, [math.nan, math.inf, 3, math.nan], [1, 2, 0, 1]),
    ],
)
def test_what_is_an_improvement(mode: str, min_delta: float, values: list[float], waited: list[int]) -> None:
    assert counted(mode, min_delta, values) == waited


def test_a_figure_that_is_not_logged_is_refused_with_those_that_are(make_run: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no figure 'metrics/kat' is logged\. Did you mean 'metrics/kad'\? Logged: me"
    ):
        life(make_run, tmp_path, monitor="metrics/kat")
    run = make_run(max_steps=2, callbacks=[StopEarly(str(tmp_path), "val/loss")])
    run.trainer.limit_val_batches = 0
    with pytest.raises(ValueError, match="expected a run with validations"):
        run.fit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience: expected at least 1, got 0"),
        ({"min_delta": -1.0}, "min_delta: expected a finite number, 0 or more, got -1.0"),
        ({"mode": "least"}, 'mode: expected "min" or "max", got \'least\''),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StopEarly(".", "val/loss", **options)


def test_every_nth_validation_is_the_same_after_a_resume(make_run: Any, tmp_path: Path) -> None:
    class Every(L.Callback):
        def __init__(self) -> None:
            self.count, self.chosen = ValidationCount(2), []

        def state_dict(self) -> dict[str, Any]:
            return self.count.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.count.load_state_dict(state_dict)

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.count.catch_up(trainer)

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if self.count.take(trainer):
                self.chosen.append(trainer.global_step)

    found = []
    for ckpt in (None, 3, 4):  # 4: saved before its validation
        every = Every()
        save = SaveCheckpoint(str(tmp_path / str(ckpt)), every_n_steps=1, keep=11)
        make_run(max_steps=10, val_every=2, callbacks=[every, save]).fit(
            path_of(tmp_path / "None" / "checkpoints", ckpt) if ckpt else None
        )
        found.append(every.chosen)
    assert found == [[2, 6, 10], [6, 10], [6, 10]]
