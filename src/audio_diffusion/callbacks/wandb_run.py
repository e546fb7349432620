"""The display of a run in W&B: rows by optimizer step, keys in a few groups, and figures for comparing runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

STEP = "step"  # key of the optimizer step, the horizontal axis of all charts
#: the groups of keys, in the order in which they matter; W&B shows each as a section of panels
GROUPS = ("train", "val", "metrics", "samples", "speed", "data", "checkpoint", "failures")
#: figures whose least value is shown in the table of runs, beside the last one
BEST = ("val/loss_ema", "val/bits_per_dim", "metrics/kad", "metrics/fad")


def key_of(name: str) -> str:
    """Returns the key of a logged figure: counts of failures, such as ``sampling/failures``, are in one group."""
    what, _, last = name.rpartition("/")
    return f"failures/{what}" if last in ("failures", "failed") else name


class WandbRun(WandbLogger):
    """A W&B logger whose charts have the optimizer step as ``step``.

    A count of failures, once there is one, is part of every later row, so that it is a curve and not a single point.
    """

    step_key = STEP
    _failures: dict[str, float] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which is started at the first use."""
        is_new = self._experiment is None
        run = super().experiment
        if is_new:
            define_keys(run)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {key_of(name): value for name, value in metrics.items()}
        failures = {key: value for key, value in row.items() if key.startswith("failures/")}
        self._failures = {**(self._failures or {}), **failures}
        self.experiment.log({**row, **self._failures, **({} if step is None else {STEP: step})})


def define_keys(run: Any) -> None:
    """Declares the axis of all keys, and which values of the figures in ``BEST`` the table of runs shows."""
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)  # in place of the axis that Lightning declares
    for name in BEST:
        run.define_metric(name, step_metric=STEP, summary="min,last")


def note_on_resume(run_dir: Path, step: int, last: int) -> str:
    """Returns what W&B will show of a run that resumes at a step before the last one that was logged.

    Args:
        run_dir: the run's folder.
        step: of the checkpoint.
        last: the last step that was logged before.
    """
    run_id = (run_dir / "wandb_id").read_text(encoding="utf-8").strip()
    return (
        f"W&B: run {run_id} has rows up to step {last:,}, which cannot be removed there. The new rows are added, so "
        f"its charts show steps {step + 1:,} to {last:,} twice; metrics.jsonl and index.html have the new rows alone. "
        f"For a W&B run of its own, remove {run_dir}/wandb_id before resuming"
    )
