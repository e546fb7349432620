"""The figures of callbacks=metrics, however the clips are shared out, and the training beside them."""

import json
from typing import Any

import pytest
import torch

#: five clips, so that one of two ranks generates one of them once more
MEASURE = (
    "callbacks=metrics", "metrics@callbacks.metrics.metrics=[signal]", "callbacks.metrics.num_generated=5",
    "callbacks.metrics.num_real=4", "callbacks.metrics.batch_size=2", "callbacks.metrics.every_n_validations=2",
)  # fmt: skip
DDP = ("trainer=ddp", "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def measured(start) -> dict[str, Any]:
    """The same six steps on one rank and on two, measured at the validations of steps 2 and 6."""
    waiting = {"one": start("measured", *MEASURE), "two": start("measured_two", *MEASURE, *DDP, ranks=2)}
    return {name: ended() for name, ended in waiting.items()}


def figures(run: Any) -> dict[str, float]:
    """All figures, by name and step."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {f"{name} {row['step']}": row[name] for row in rows for name in row if name.startswith("metrics/")}


def test_two_ranks_measure_what_one_measures(measured) -> None:
    one, two = figures(measured["one"]), figures(measured["two"])
    assert {name.split()[1] for name in one} == {"2", "6"}
    assert "metrics/rms_dbfs 2" in one
    assert "metrics/failures 2" not in one
    assert two == pytest.approx(one, rel=1e-3, abs=1e-3)  # weights are equal to rounding


def test_training_on_two_ranks_is_the_same_to_the_bit_with_and_without(measured, runs) -> None:
    for with_metrics, without in zip(measured["two"].seen, runs["two"].seen, strict=True):
        assert with_metrics["trained"] == without["trained"]
        assert with_metrics["state"].keys() == without["state"].keys()
        assert all(torch.equal(value, without["state"][name]) for name, value in with_metrics["state"].items())
