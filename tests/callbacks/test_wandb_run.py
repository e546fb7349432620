"""Keys, axis and summaries of a W&B run, and what is printed of rows that W&B keeps."""

from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.callbacks.wandb_run import BEST, GROUPS, WandbRun, define_keys, key_of, note_on_resume


class Service:
    """Records what W&B is given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.defined: dict[str, dict[str, Any]] = {}

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined[name] = options


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("train/loss", "train/loss"),
        ("sampling/failures", "failures/sampling"),
        ("checkpoint/failed", "failures/checkpoint"),
        ("checkpoint/write_s", "checkpoint/write_s"),
    ],
)
def test_counts_of_failures_are_one_group(name: str, key: str) -> None:
    assert key_of(name) == key
    assert key.split("/")[0] in GROUPS


def test_a_failure_is_a_curve_and_rows_have_their_step(tmp_path: Path) -> None:
    logger, service = WandbRun(save_dir=str(tmp_path), offline=True), Service()
    logger._experiment = service  # type: ignore[assignment]
    logger.log_metrics({"train/loss": 3.0}, 1)
    logger.log_metrics({"sampling/failures": 1}, 2)
    logger.log_metrics({"train/loss": 2.0}, 3)
    assert service.rows == [
        {"train/loss": 3.0, "step": 1},
        {"failures/sampling": 1, "step": 2},
        {"train/loss": 2.0, "failures/sampling": 1, "step": 3},
    ]


def test_all_keys_are_drawn_by_step_and_the_best_figures_are_in_the_table_of_runs() -> None:
    service = Service()
    define_keys(service)
    assert service.defined["*"] == {"step_metric": "step", "step_sync": True}
    assert all(service.defined[name] == {"step_metric": "step", "summary": "min,last"} for name in BEST)


def test_a_run_that_resumes_earlier_says_what_wandb_shows(tmp_path: Path) -> None:
    (tmp_path / "wandb_id").write_text("abc\n")
    said = note_on_resume(tmp_path, 1000, 1200)
    assert "run abc has rows up to step 1,200, which cannot be removed there" in said
    assert "its charts show steps 1,001 to 1,200 twice" in said
