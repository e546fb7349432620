"""The picture of a data set draws what its manifest says, with no class, one, and many."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt

from audio_diffusion.metrics import charts, pictures


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
    figure = charts.data_set(told)
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


def test_each_channel_of_a_clip_is_drawn_with_its_scales() -> None:
    loud = torch.stack([torch.full((8000,), 0.5), torch.full((8000,), -2.0)])
    rows = [
        pictures.Row("real", [loud[:1] / 4, None], ["kick", ""]),
        pictures.Row("result", [loud / 4, loud], ["quiet $", "loud"], [[(0.25, 0.5)], []]),
    ]
    figure = pictures.sample_grid(rows, 8000)
    *axes, bar = figure.axes
    assert len(axes) == 2 * (2 + 4)  # waveform and mel of one channel, and of two
    assert bar.get_ylabel() == "dB of full scale"
    titles = [place.get_title() for place in axes if place.get_title()]
    assert titles[0] == "kick\npeak -18.1, RMS -18.1 dBFS"
    assert titles[1:] == [
        "quiet $\npeak -6.0, RMS -8.8 dBFS", "loud\npeak 6.0 (drawn at 0), RMS 3.3 dBFS"
    ]  # fmt: skip
    assert [place.get_ylabel() for place in axes if place.get_ylabel()] == ["real", "result L", "result R"]
    assert [tick.get_text() for tick in axes[2].get_yticklabels()] == ["500 Hz", "1 kHz", "2 kHz"]
    assert [len(place.patches) for place in axes if place.lines and place.get_ylim()[0] < 0] == [0, 1, 0, 1, 0]
    assert abs(axes[9].lines[0].get_ydata()[0]) == pytest.approx(1)
    plt.close(figure)


def test_long_titles_fit_and_an_empty_place_says_why() -> None:
    clip = torch.full((1, 8000), 0.5)
    title = "a_long_recording_of_rain_a_door"
    figure = pictures.sample_grid([pictures.Row(title, [clip, None], ["kick", "no 'tom'\nis held out"])], 8000)
    figure.draw_without_rendering()
    label = figure.axes[0].yaxis.label
    assert label.get_text() == "a_long_r…in_a_door"
    assert figure.axes[1].get_title() == "no 'tom'\nis held out"
    extent = label.get_window_extent()
    assert extent.y0 >= 0
    assert extent.y1 <= figure.bbox.y1
    plt.close(figure)


@pytest.mark.parametrize("words", ["$_$ loud", "$\\frac$", "a $5_$ kit", "🎵 鼓"])
def test_names_are_drawn_as_they_are_written(words: str, tmp_path: Path) -> None:
    clip = torch.full((1, 800), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = pictures.sample_grid([pictures.Row(words, [clip], [words])], 8000)
        assert pictures.save(figure, tmp_path / "grid.png").stat().st_size > 1000
    assert figure.axes[0].yaxis.label.get_text() == words
