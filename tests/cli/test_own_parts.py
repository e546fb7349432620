"""A network, a representation, a condition and a callback from a package of the user's own, through all programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import audio_diffusion
from audio_diffusion.cli.own_parts import open_for_arguments, split_config_dir, targets_in
from audio_diffusion.inference.targets import ConfigError
from audio_diffusion.metrics.metric import Clips, Figure, Metric, Subject, check_metric
from audio_diffusion.networks.conditions.condition import Conditions
from audio_diffusion.networks.network import check_network
from audio_diffusion.representations.representation import check_representation
from audio_diffusion.representations.waveform import Waveform

PACKAGE = """
import math
import lightning as L
from torch import nn
from audio_diffusion.metrics.metric import Figure, Metric
from audio_diffusion.networks.conditions.condition import Conditions, Label

class MyNet(nn.Module):
    multiple = 1
    def __init__(self, channels, conditions={}, width=8):
        super().__init__()
        self.conditions = Conditions(conditions, width)
        self.inner, self.out = nn.Conv1d(channels, width, 9, padding=4), nn.Conv1d(width, channels, 9, padding=4)
    def forward(self, x_t, t, cond):
        h = self.inner(x_t) + t[:, None, None] + self.conditions(cond).vector[:, :, None]
        return x_t + self.out(h.tanh())

class MidSide:
    hop, exact, elementwise = 1, True, False
    def __init__(self, gain=3.0):
        self.gain = gain
    def shape(self, channels, num_samples):
        return channels, num_samples
    def encode(self, audio):
        return audio.flip(1) * self.gain
    def decode(self, x0):
        return x0.flip(1) / self.gain
    def mask(self, valid):
        return valid
    def log_det(self, channels, num_samples):
        return channels * num_samples * math.log(self.gain)

class MyLabel(Label):
    pass

class Counts(Metric):
    needs = ("real", "train", "generated")
    def start(self, subject):
        self.counts = dict.fromkeys(self.needs, 0)
    def update(self, clips, source):
        assert clips.audio.isfinite().all() and clips.audio.shape[0] == len(clips.names) == len(clips.labels)
        self.counts[source] += len(clips)
    def compute(self):
        return {source: Figure(float(count)) for source, count in self.counts.items()}
    def forget_generated(self):
        self.counts["generated"] = 0

class CountSteps(L.Callback):
    def __init__(self, file):
        self.file = file
    def on_train_batch_end(self, *args):
        with open(self.file, "a") as f:
            f.write(".")
"""
NET_YAML = """
_target_: THE_PACKAGE.MyNet
channels: ${x0_channels:${representation},${audio}}
conditions: {}
width: 16
"""
CALLBACKS_YAML = """
defaults: [default]
count: {_target_: THE_PACKAGE.CountSteps, file: steps.txt}
"""

METRICS_YAML = """
counts: {_target_: THE_PACKAGE.Counts}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a package of an unusual name, and configs that name it."""
    (tmp_path / "own_parts_pkg").mkdir()
    (tmp_path / "own_parts_pkg" / "__init__.py").write_text(PACKAGE)
    for name, text in {"model/mine": NET_YAML, "callbacks/mine": CALLBACKS_YAML, "metrics/mine": METRICS_YAML}.items():
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("THE_PACKAGE", "own_parts_pkg"))
    return tmp_path


def test_all_programs_run_the_code_of_a_package_that_the_user_names(
    project: Path, run_program: Callable, drum_shards: Path, tiny_sampled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(script: str, *options: str, status: int = 0) -> str:
        done = run_program(project, script, *options)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    small = [o for o in tiny_sampled if not o.startswith("model.")]
    common = [
        "experiment=drums", f"data.train={drum_shards}", *small, "config_dir=conf", "callbacks=mine", "name=own",
        "model=mine", "representation._target_=own_parts_pkg.MidSide", "representation.gain=8",
        "model.conditions.label._target_=own_parts_pkg.MyLabel",
    ]  # fmt: skip
    program("train.py", *common, "max_steps=2")
    assert "resuming from" in program("train.py", *common, "max_steps=3")
    assert (project / "steps.txt").read_text() == "..."

    refused = program("sample.py", "ckpt=runs/own", "num_samples=1", status=2)
    assert "names 'own_parts_pkg.MyNet'" in refused
    assert "'trust=[own_parts_pkg]'" in refused
    trusted = "trust=[own_parts_pkg]"
    program("sample.py", "ckpt=runs/own", "num_samples=1", trusted)
    assert len(list((project / "runs/own/generated").glob("*.wav"))) == 1
    assert "variational bound" in program(
        "evaluate.py", "ckpt=runs/own", "num_clips=2", "metrics.likelihood.flow=null", trusted
    )
    program("export.py", "ckpt=runs/own", "output=exported", trusted)
    of_export = [
        "ckpt=exported",
        "num_clips=2",
        "metrics.likelihood.flow=null",
        trusted,
    ]  # an exported model does not know its data
    assert "give shards: data=SHARDS" in program("evaluate.py", *of_export, status=2)
    program("evaluate.py", *of_export, f"data={drum_shards}")
    figures = [
        folder / "evaluation.json" for folder in (project / "runs/own/evaluation", project / "exported_evaluation")
    ]
    ours, exported = (
        json.loads(file.read_text())["metrics"]["likelihood"]["bound"]["bits_per_dim"] for file in figures
    )
    assert ours == exported

    counting = ["config_dir=conf", "metrics=[mine]", "num_clips=5", "num_generated=7", "num_train=3", "output=counted"]
    assert "generated                      7" in program("evaluate.py", "ckpt=runs/own", *counting, trusted)
    found = json.loads((project / "counted/evaluation.json").read_text())
    assert found["clips"] == {"real": 5, "train": 3, "generated": 7}
    assert {name: figure["value"] for name, figure in found["metrics"]["counts"]["figures"].items()} == found["clips"]

    monkeypatch.syspath_prepend(str(project))
    with pytest.raises(ConfigError, match=r"trust=\[own_parts_pkg\]"):
        audio_diffusion.load(project / "exported")
    model = audio_diffusion.load(project / "exported", trust=["own_parts_pkg"])
    assert type(model.representation).__name__ == "MidSide"
    assert model.generate([0], ["kick"]).isfinite().all()


def test_a_class_chosen_in_place_of_a_yamls_has_its_own_options(
    project: Path, run_program: Callable, tiny_sampled: list[str]
) -> None:
    options = [
        "experiment=drums", "name=x", "check=true", "classes=[a,b]", "audio.num_samples=1024",
        "model._target_=own_parts_pkg.MyNet",
    ]  # fmt: skip
    done = run_program(project, "train.py", *options, "model.width=12")
    assert done.returncode == 0, done.stderr
    done = run_program(project, "train.py", *options, "model.widht=12")
    assert "model.widht: own_parts_pkg.MyNet has no such argument. Did you mean 'width'?" in done.stderr
    done = run_program(project, "train.py", *options[:-1], "model._target_=own_parts_pkg.MyNett")
    assert "own_parts_pkg has no 'MyNett'. Did you mean 'MyNet'?" in done.stderr


def test_options_of_a_chosen_class_are_told_from_others() -> None:
    options = ["model._target_=a.B", "model.width=3", "model.conditions.label.field=x", "seed=1"]
    assert targets_in(options) == {"model": "a.B"}
    assert open_for_arguments(options) == ["++model._target_=a.B", "++model.width=3", *options[2:]]


def test_a_folder_of_configs_must_hold_groups(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config_dir: expected a folder with a YAML .* got '.*nowhere'"):
        split_config_dir([f"config_dir={tmp_path / 'nowhere'}"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.yaml").touch()
    assert split_config_dir(["a=1", f"config_dir={tmp_path}"]) == (tmp_path.resolve(), ["a=1"])


class Bare(nn.Module):
    def __init__(self, **members: Any) -> None:
        super().__init__()
        for name, value in members.items():
            setattr(self, name, value)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        return x_t


class TwoArguments(Bare):
    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x_t


@pytest.mark.parametrize(
    ("net", "problem"),
    [
        (Bare(), r"Bare has no 'conditions': a network .* needs conditions: Conditions"),
        (Bare(conditions={}, multiple=1), r"Bare\.conditions: a network .* needs conditions: Conditions .*, got {}"),
        (Bare(conditions=Conditions({}, 8)), r"Bare has no 'multiple'.* needs multiple: int"),
        (TwoArguments(conditions=Conditions({}, 8), multiple=1), r"forward\(x_t.* needs forward\(x_t: Tensor"),
    ],
)  # fmt: skip
def test_what_a_network_lacks_is_named(net: nn.Module, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_network(net)


class Half(Metric):
    needs: tuple[str, ...] = ("generated",)

    def start(self, subject: Subject) -> None: ...
    def update(self, clips: Clips, source: str) -> None: ...
    def compute(self) -> dict[str, Figure]:
        return {}


class Wrong(Half):
    needs = ("validation",)


class Short(Half):
    needs = ("real",)

    def update(self, clips: Clips) -> None:  # type: ignore[override]
        ...


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        (Half(), "Half has no forget_generated of its own, which a metric of generated clips needs"),
        (Wrong(), r"Wrong\.needs: a metric needs .*some of real, train, generated, got \('validation',\)"),
        (Short(), r"Short\.update\(clips.*needs update\(clips: Clips, source: str\) -> None"),
        (object(), r"object has no 'needs'"),
    ],
)
def test_what_a_metric_lacks_is_named(metric: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_metric(metric)


def test_what_a_representation_lacks_is_named() -> None:
    class NoMask(Waveform):
        mask = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"NoMask\.mask.* needs mask\(valid: Tensor\) -> Tensor"):
        check_representation(NoMask())
    check_representation(Waveform())
