"""The benchmark of the data path measures what it says: the same audio each time, true crops, honest sums."""

import io
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

NAMES = ("serve", "byhand", "ours", "corpora", "report", "inside", "run")


@pytest.fixture(scope="module")
def modules() -> Any:
    """The benchmark's own modules, by name; scripts beside each other, not a package."""
    folder = str(Path(__file__).parents[2] / "benchmarks" / "data")
    sys.path.insert(0, folder)
    yield {name: import_module(name) for name in NAMES}
    sys.path.remove(folder)
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def root(modules: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three utterances, as the benchmark makes them."""
    folder, corpora = tmp_path_factory.mktemp("bench"), modules["corpora"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "QUICK", {"speech": 3})
        corpora.make(folder, quick=True)
    return folder


def test_audio_is_the_same_each_time_and_as_hard_to_compress_as_music(modules: dict[str, ModuleType]) -> None:
    track, utterance = modules["corpora"].track, modules["corpora"].utterance
    samples = track(3, 6.0)
    assert np.array_equal(samples, track(3, 6.0))
    assert not np.array_equal(samples, track(4, 6.0))
    assert np.array_equal(utterance(3), utterance(3))
    file = io.BytesIO()
    sf.write(file, samples, 44_100, format="FLAC")
    assert 0.5 < len(file.getvalue()) / samples.nbytes < 0.7


@pytest.mark.parametrize("encoding", ["flac", "wav"])
def test_every_way_gives_crops_of_the_clips(modules: dict[str, ModuleType], root: Path, encoding: str) -> None:
    row = modules["serve"].Row(str(root / "speech"), encoding, 16_000, 16_000, 1, 8_000, 4)
    files = sorted((root / "speech" / "files" / encoding).iterdir())[:3]
    whole = [torch.from_numpy(sf.read(path, dtype="float32")[0]).unfold(0, 8_000, 1) for path in files]
    for name, way in {"ours": modules["ours"].ours, **modules["byhand"].WAYS}.items():
        batch = next(way(row))
        audio = batch.audio if name == "ours" else batch
        assert audio.shape == (4, 1, 8_000)
        for crop in audio[:, 0]:
            assert any((clip[clip[:, 0] == crop[0]] == crop).all(1).any() for clip in whole), name


def test_time_is_counted_and_failures_are_answers(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"corpus": "", "encoding": "flac", "rate_in": 8_000, "sample_rate": 8_000, "channels": 1}
    row |= {"num_samples": 4_000, "batch_size": 2}
    orders = [{"row": row, "way": "good"}, {"seconds": 0.02}, {"row": row, "way": "bad"}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, orders))))
    counted = iter(range(10**9))

    def bad(row: Any) -> Any:
        raise ValueError("no such thing")

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # serve puts another in its place
    modules["serve"].serve({"good": lambda row: counted, "bad": bad})
    ready, measured, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == {"ready": True}
    assert measured["audio"] == next(counted) - 1  # batches of 1 s, but for the first and this one
    assert 0.02 <= measured["main"] < 1
    assert measured["workers"] == 0
    assert failed == {"error": "ValueError: no such thing"}


def test_the_report_has_every_figure_and_every_failure(modules: dict[str, ModuleType]) -> None:
    report, inside = modules["report"], modules["inside"]
    measured = [{"audio": audio, "wall": 1.0, "main": 1.0, "workers": 1.0} for audio in (10.0, 12.0, 14.0)]
    ways = {name: measured for name in (report.OURS, report.ONE_WORKER, report.TAR)} | {"a peer": "not installed"}
    kinds = ("worker resident", "worker own", "worker anonymous", "main resident")
    looked = {
        "stages": {"r": dict.fromkeys((*inside.STAGES, "stopwatch"), 0.25)},
        "cold": {"2 workers": [dict.fromkeys(("imports", "setup", "first", "second"), 1.5)]},
        "late": {"start": [20.0, 22.0, 30.0], "late": [21.0]},
        "memory": {"r": dict.fromkeys(kinds, 76.0)},
    }
    text = report.write(["today"], {"r": ways}, {"r": {"1": measured, "2": measured[::-1]}}, looked, {"r": 1.5})
    for expected in (
        "6 [5-7]", "- a peer, r: not installed", "1.00 [1.00-1.00]", "1.00 [0.71-1.40]", "22.0 [20.0-30.0]",
        "| r | 76 | 76 | 76 | 76 |", "1.50 [1.50-1.50]", "0.250", "- today",
    ):  # fmt: skip
        assert expected in text


def test_stages_do_not_count_what_others_take_inside_them(modules: dict[str, ModuleType]) -> None:
    class Work:
        def outer(self) -> None:
            self.inner()

        def inner(self) -> None:
            sum(range(3_000_000))

    watch, work = modules["inside"].Stopwatch(), Work()
    watch.wrap(work, "outer", "outer")
    watch.wrap(work, "inner", "inner")
    work.outer()
    watch.lap()
    assert watch.spent["inner"] > 20 * watch.spent["outer"] > 0


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="Linux")
def test_the_machine_is_named(modules: dict[str, ModuleType]) -> None:
    assert any("torch 2" in line for line in modules["report"].machine())
