"""Ends a run whose logged figure no longer improves."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from audio_diffusion.callbacks.cluster.preemption import is_stopping
from audio_diffusion.callbacks.loggers import latest_metrics
from audio_diffusion.callbacks.validations import is_at_validation
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.inference.targets import nearest

RECORD = "stopped_early.json"  # file in the run's folder with the reason for an early stop
_COUNTS = ("best", "best_step", "seen_step", "validated_at", "waited")


class StopEarly(L.Callback):
    """Ends training when a logged figure has not improved for ``patience`` validations.

    Only validations at or before which the figure was logged anew are counted, so that a figure may be measured at
    every n-th validation alone. The counts are part of each checkpoint, and a resumed run stops where an uninterrupted
    one would. A run that was stopped is finished; with more patience it continues.

    Args:
        folder: the run's folder, with its metrics.jsonl.
        monitor: name of a logged figure, such as "val/loss_ema" or "metrics/kad"; None never stops.
        mode: "min" if less is better, or "max".
        patience: number of validations with the figure, one after another, that do not improve it.
        min_delta: smallest change that is an improvement.

    Raises:
        ValueError: for ``patience`` below 1, ``min_delta`` below 0, or another mode.
    """

    def __init__(
        self, folder: str, monitor: str | None = None, mode: str = "min", patience: int = 10, min_delta: float = 0.0
    ):
        check_at_least_one(patience=patience)
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta: expected a finite number, 0 or more, got {min_delta}")
        if mode not in ("min", "max"):
            raise ValueError(f'mode: expected "min" or "max", got {mode!r}')
        self.folder, self.monitor, self.mode = Path(folder), monitor, mode
        self.patience, self.min_delta = patience, min_delta
        self.best: float | None = None  # the value that a later one must improve
        self.best_step = self.seen_step = -1  # of the best value, and of the last one that was counted
        self.validated_at = -1  # step of the last validation
        self.waited = 0  # validations without improvement since the best value

    def state_dict(self) -> dict[str, Any]:
        if self.monitor is None:
            return {}
        return {name: getattr(self, name) for name in ("monitor", "mode", *_COUNTS)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (state_dict.get("monitor"), state_dict.get("mode")) == (self.monitor, self.mode):
            for name in _COUNTS:
                setattr(self, name, state_dict[name])

    @property
    def reason(self) -> str:
        """The reason why the run should end, in one line; empty if it should not."""
        if self.monitor is None or self.best is None or self.waited < self.patience:
            return ""
        more = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"{self.monitor} has not improved{more} on {self.best:.4g} (step {self.best_step:,}) in {self.waited} "
            f"validations"
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor is None:
            return
        if not trainer.enable_validation:
            raise ValueError(
                f"callbacks.early_stopping.monitor={self.monitor}: expected a run with validations, and this one has "
                "none: set val_every_steps, and hold clips out"
            )
        if self.validated_at < trainer.global_step and is_at_validation(trainer):  # not in the checkpoint
            self._take(trainer, *trainer.strategy.broadcast(self._logged_before(trainer)))
        rank_zero_info(
            f"early stopping: the run ends when {self.monitor} has not improved for {self.patience} validations"
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts the figure; rank 0 decides, because only it has all figures."""
        if self.monitor is None or trainer.sanity_checking or is_stopping(trainer):
            return
        if trainer.state.fn != TrainerFn.FITTING:
            return
        step, value, problem = trainer.strategy.broadcast(self._newest(trainer))
        if problem:
            raise ValueError(problem)
        self._take(trainer, step, value)

    def _take(self, trainer: L.Trainer, step: int, value: float) -> None:
        """Counts a validation, with the step and the value of the figure that was logged last."""
        self.validated_at = trainer.global_step
        if step > self.seen_step:
            self.seen_step = step
            self._count(step, value)
        if self.reason:
            trainer.should_stop = True

    def _logged_before(self, trainer: L.Trainer) -> tuple[int, float]:
        """Step and value of the figure's last row in metrics.jsonl, from an earlier life of the run."""
        found = self.seen_step, math.nan
        if trainer.is_global_zero and (path := self.folder / "metrics.jsonl").is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if f'"{self.monitor}"' in line:
                    with contextlib.suppress(ValueError, KeyError, TypeError):  # half-written
                        row = json.loads(line)
                        if row["step"] <= trainer.global_step:
                            found = int(row["step"]), float(row[self.monitor])
        return found

    def _count(self, step: int, value: float) -> None:
        """Compares a value with the best one; NaN and infinity are no improvement."""
        better = self.best is None or (
            value < self.best - self.min_delta if self.mode == "min" else value > self.best + self.min_delta
        )
        if math.isfinite(value) and better:
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1

    def _newest(self, trainer: L.Trainer) -> tuple[int, float, str]:
        """Step and value of the figure as it was logged last, and what is wrong if it never was."""
        assert self.monitor is not None
        logged = latest_metrics(trainer)
        if self.monitor in logged:
            return *logged[self.monitor], ""
        if self.best is not None or self.waited:  # before this life of the run
            return self.seen_step, math.nan, ""
        if f"{self.monitor.split('/')[0]}/failures" in logged:
            rank_zero_warn(f"early stopping: {self.monitor} is not counted, as it could not be measured")
            return self.seen_step, math.nan, ""
        return (
            self.seen_step,
            math.nan,
            f"callbacks.early_stopping.monitor: no figure {self.monitor!r} is logged."
            f"{nearest(self.monitor, list(logged))} Logged: {', '.join(sorted(logged))}",
        )


def early_stop_of(trainer: L.Trainer) -> str:
    """Returns the reason why the run ends early, in one line; empty if it does not."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.reason for callback in callbacks if isinstance(callback, StopEarly)), "")


def record_early_stop(trainer: L.Trainer, run_dir: Path) -> None:
    """Records in the run's folder, on rank 0, whether early stopping has finished the run."""
    if not trainer.is_global_zero:
        return
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    stop = next((one for one in callbacks if isinstance(one, StopEarly) and one.reason), None)
    if stop is None:
        (run_dir / RECORD).unlink(missing_ok=True)
        return
    state = {"step": trainer.global_step, "reason": stop.reason, **stop.state_dict(), "min_delta": stop.min_delta}
    (run_dir / RECORD).write_text(json.dumps(state), encoding="utf-8")


def finished_early(run_dir: Path, step: int, options: Mapping[str, Any]) -> str | None:
    """Returns the message for a run that early stopping has finished at a step; None if it is to continue.

    Args:
        run_dir: the run's folder.
        step: of its newest checkpoint.
        options: those of early stopping, as they are now.
    """
    try:
        record = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
        same = all(record[name] == options.get(name) for name in ("monitor", "mode", "min_delta"))
        if not same or record["step"] != step or record["waited"] < options["patience"]:
            return None
        reason, more = record["reason"], 2 * record["waited"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        f"{run_dir} is finished: it was stopped early at step {step}, as {reason}. To continue: "
        f"callbacks.early_stopping.patience={more}"
    )
