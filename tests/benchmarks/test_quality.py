"""The benchmark of quality: what is finished is kept, corpora are checked, and each system trains in its time."""

import csv
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_diffusion.data.audio.reading import write_audio
from audio_diffusion.packing.datasets import drums

NAMES = ("budget", "corpora", "measure", "ours", "peers", "report", "run")
TINY = ["audio.num_samples=4096", "batch_size=2"]


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's own modules, by name; scripts beside each other, not a package."""
    folder = str(Path(__file__).parents[2] / "benchmarks" / "quality")
    sys.path.insert(0, folder)
    yield {name: import_module(name) for name in NAMES}
    sys.path.remove(folder)
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one corpus: 120 hits, a half of them for the test."""
    root = tmp_path_factory.mktemp("corpora")
    folder = root / "hits"
    folder.mkdir()
    splits = ["train", "test", "valid", "test", "train", "test"]
    rows = []
    for i, (_, label, audio) in enumerate(drums.hits(24, seed=0)):
        write_audio(folder / f"{i:03d}.wav", torch.from_numpy(audio)[None], 16_000)
        rows.append([f"{i:03d}.wav", label, splits[i % len(splits)]])
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file", "label", "split"], *rows])
    return root


class Copies:
    """A system that has learnt by heart: real clips, noisier the slower it is."""

    learning_rates = (1e-4, 1e-3)

    def __init__(self, name: str, noise: float):
        self.name, self.noise, self.trained = name, noise, list[float | None]()

    def problem(self) -> str:
        return ""

    def train(self, corpus: Any, seconds: float, seed: int, rate: float | None, device: str, folder: Path) -> dict:
        self.trained.append(rate)
        spent = {"seconds": seconds, "steps": 1, "parameters": 1000, "learning_rate": rate}
        return {**spent, "held_out_loss": 1 / (rate or 1)}  # the greater rate is better

    def generate(self, corpus: Any, labels: list[str], calls: int, seed: int, device: str, folder: Path) -> Tensor:
        clips, _ = corpus.crops("train", len(labels))
        clips = clips.repeat(-(-len(labels) // len(clips)), 1, 1)[: len(labels)]
        return clips + self.noise * torch.randn(clips.shape, generator=torch.Generator().manual_seed(seed))


def arguments(corpora: Path, folder: Path, *more: str) -> list[str]:
    options = ["--work", str(folder / "work"), "--output", str(folder / "out"), "--seeds", "0", "--clips", "60"]
    return [str(corpora), *options, "--reference", "60", "--calls", "2", "--minutes", "0.004", *more]


def test_finished_cells_are_kept_and_the_page_says_what_is_missing(
    modules: dict[str, ModuleType], corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = Copies("ours", 0.001), Copies("diffusers", 0.2)
    near.learning_rates = ()  # type: ignore[assignment]
    monkeypatch.setattr(modules["run"], "SYSTEMS", {"ours": near, "diffusers": far})
    command = arguments(corpora, tmp_path, "--overrides", *TINY)
    modules["run"].main(command)
    assert near.trained == [None]
    assert far.trained == [1e-4, 1e-3]  # the better of both is the cell: it is not trained again
    file = tmp_path / "out" / "results.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [record["system"] for record in records] == ["real", "ours", "diffusers", "diffusers", "diffusers"]
    ours, cell = records[1], records[-1]
    assert cell["spent"]["learning_rate"] == 1e-3
    assert ours["kad"]["log_mel"]["value"] < cell["kad"]["log_mel"]["value"]
    assert 0 <= cell["accuracy"] <= 1  # the copies do not heed the label: any share may be named as asked
    assert 0 <= ours["accuracy"] <= 1

    file.write_bytes(file.read_bytes()[:-40])  # as a kill leaves it
    modules["run"].main(command)
    assert near.trained == [None]
    assert far.trained == [1e-4, 1e-3]
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["kad"] == cell["kad"]
    page = (tmp_path / "out" / "RESULTS.md").read_text(encoding="utf-8")
    assert "## 15 minutes of CPU time on one thread\n\nNot run." in page
    assert "## 0.004 minutes of CPU time on one thread\n\n60 generated clips, 2 network calls each" in page
    assert "| 0.001 | 0.0001, 0.001 |" in page
    assert "(of one peer)" in page
    assert "| speech | not run | not run | not run | not run | - |" in page


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "label"], ["a.wav", "x"]], "has no column split"),
        ([["file", "split"], ["a.wav", "train"]], "expected clips of each split, train, val and test, got train"),
        ([["file", "split"], ["a.wav", "dev"]], "split: expected train, val or test, got dev"),
    ],
)
def test_a_manifest_that_lacks_something_is_named(
    modules: dict[str, ModuleType], tmp_path: Path, rows: list[list[str]], message: str
) -> None:
    with open(tmp_path / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(ValueError, match=message):
        modules["corpora"].find([f"mine={tmp_path}"])


@pytest.mark.parametrize("name", ["audio-diffusion-pytorch", "diffusers"])
def test_a_peer_trains_within_its_time_and_generates_by_the_calls_that_are_given(
    modules: dict[str, ModuleType], corpora: Path, tmp_path: Path, name: str
) -> None:
    system = modules["peers"].PEERS[name]
    if problem := system.problem():
        pytest.skip(problem)
    corpus = modules["corpora"].prepare("hits", corpora / "hits", tmp_path, None, TINY)
    spent = system.train(corpus, 0.1, 0, None, "cpu", tmp_path)
    assert spent["seconds"] < 0.1 + 3 * spent["seconds_per_step"]
    assert spent["learning_rate"] == 1e-4
    calls, make = [], system.make

    def counted(*sizes: int) -> Any:
        peer = make(*sizes)
        net = peer.net if name == "diffusers" else peer.net["model"].net
        net.register_forward_hook(lambda *_: calls.append(1))
        return peer

    system.make = counted
    try:
        clips = system.generate(corpus, corpus.classes[:3], 4, 0, "cpu", tmp_path)
    finally:
        system.make = make
    assert clips.shape == (3, 1, 4096)
    assert clips.isfinite().all()
    assert len(calls) == 4


@pytest.mark.slow
def test_this_project_trains_within_its_time(modules: dict[str, ModuleType], corpora: Path, tmp_path: Path) -> None:
    tiny = [*TINY, "model.widths=[8,16]", "model.factors=[4]", "model.attention=false", "model.num_blocks=1"]
    corpus = modules["corpora"].prepare("hits", corpora / "hits", tmp_path, None, tiny)
    spent = modules["ours"].Ours().train(corpus, 2.0, 0, None, "cpu", tmp_path)
    assert spent["steps"] > 3
    assert spent["seconds"] < 2.5
    clips = modules["ours"].Ours().generate(corpus, corpus.classes[:3], 4, 0, "cpu", tmp_path)
    assert clips.shape == (3, 1, 4096)
    assert clips.isfinite().all()
