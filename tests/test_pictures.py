"""The picture of a data set draws what its manifest says, with no class, one, and many."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from audio_diffusion import pictures


@pytest.fixture
def manifest() -> Callable[[int, int], dict[str, Any]]:
    """manifest(classes, clips without a label) -> what make_shards.py writes."""

    def made(num_classes: int, unlabelled: int) -> dict[str, Any]:
        labels = {f"class {n:03d} $" + "x" * (n % 40): 1 + n * n for n in range(num_classes)}
        clips = sum(labels.values()) + unlabelled
        durations = [[0.19953, 3], [100.0, clips - 3]]
        return {
            "hours": 1.5,
            "clips": {"train": clips - 1, "val": 1, "test": 0},
            "labels": labels,
            "unlabelled": unlabelled,
            "durations_s": {"shortest": 0.2, "mean": 3.0, "longest": 100.0, "histogram": durations},
            "levels_dbfs": {"mean": -23.456, "histogram": [[-140, 2], [-24, clips - 2]]},
        }

    return made


@pytest.mark.parametrize(("num_classes", "unlabelled", "num_bars"), [(0, 9, 1), (1, 0, 1), (12, 5, 13), (300, 0, 31)])
def test_classes_are_drawn_the_largest_first(
    manifest: Callable, tmp_path: Path, num_classes: int, unlabelled: int, num_bars: int
) -> None:
    told = manifest(num_classes, unlabelled)
    figure = pictures.data_set(told)
    durations, levels, classes = figure.axes
    assert [bar.get_height() for bar in durations.patches] == [count for _, count in told["durations_s"]["histogram"]]
    assert [bar.get_x() for bar in levels.patches] == [-140, -24]
    widths = [bar.get_width() for bar in classes.patches][::-1]
    assert len(widths) == num_bars
    assert sum(widths) == sum(told["clips"].values())
    largest = sorted(told["labels"].values(), reverse=True)[:30]
    assert widths[: len(largest)] == largest
    assert pictures.save(figure, tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert not plt.get_fignums()
