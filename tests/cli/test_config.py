"""The four doors: what a mistyped group, key, argument and value print."""

import math
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf, open_dict

from audio_diffusion.cli import config, evaluation, own_parts, program, train, train_options
from audio_diffusion.cli.config import CONFIG_DIR, ConfigError
from audio_diffusion.cli.options import check, read
from audio_diffusion.cli.train_options import TrainOptions
from audio_diffusion.diffusion import report
from audio_diffusion.diffusion.parameterization import V
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.inference.targets import check_types

ROOT = Path(__file__).parents[2]


Run = Callable[..., subprocess.CompletedProcess]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=drms", "experiment=drms: there is no such config. Did you mean 'drums'?"),
        ("condition=[label,capton]", "condition=capton: there is no such config. Did you mean 'caption'?"),
        ("sampler/grid=karas", "sampler/grid=karas: there is no such config. Did you mean 'karras'?"),
        ("modle=unet1d", "modle: there is no such option. Did you mean 'model'?"),
        ("max_step=5", "max_step: there is no such option. Did you mean 'max_steps'?"),
        ("model.chanels=2", "model.chanels: there is no such option. Did you mean 'channels'?"),
        ("data.crops_per_clip=4", "data.crops_per_clip: write data.order.crops_per_clip=4"),
        ("data.augment.invert=true", "data.augment.invert: write data.reading.augment.invert=true"),
        ("training.cond_dropout={all: 0.1}", "training.cond_dropout: write training.loss.cond_dropout={all: 0.1}"),
        ("callbacks.sampling.clip=4", "callbacks.sampling.clip: write callbacks.sampling.guidance.clip=4"),
        ("trainer=null", "trainer=null: expected the name of a config. There are: auto, cpu, ddp, debug, fsdp, gpu,"),
        ("experiment=", "experiment=: expected the name of a config. There are: drums, environment, music,"),
        ("max_steps", "max_steps: expected OPTION=VALUE"),
        ("=5", "=5: expected OPTION=VALUE"),
        ("max_steps:5", "max_steps:5: expected OPTION=VALUE"),
        ("data.train=[a,b", "Lists are written [a,b], mappings {a: b}, both in quotes for the shell"),
        ("+model.chanels=2", "options are neither added nor deleted on the command line"),
    ],
)
def test_door_1_names(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.read_command_line("train", [override])[0]
    assert message in str(caught.value)


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", overrides=["classes=[a,b]", *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps=abc", "max_steps: expected int: Value 'abc'"),
        ("audio.channels=two", "audio.channels: expected int: Value 'two'"),
        ("seed=", "seed: expected int: Value ''"),
        ("val_every_steps=0", "val_every_steps: expected at least 1, got 0"),
        ("max_steps=-1", "max_steps: expected at least 1, got -1"),
        ("audio.channels=0", "audio.channels: expected at least 1, got 0"),
        ("seed=-1", "seed: expected a whole number from 0 to 4294967295, got -1"),
        ("name=", "name: expected a name for this run, got ''"),
        ("run_dir=", "run_dir: expected a name for this run, got ''"),
        ("max_steps=1e400", "max_steps: expected a finite whole number, got inf"),
        ("batch_size=nan", "batch_size: expected a finite whole number, got nan"),
        ("audio.sample_rate=-inf", "audio.sample_rate: expected a finite whole number, got -inf"),
        ("name=../../x", "name: expected the name of one folder in runs/, without / and \\ and not '..', got"),
        ("name=a/b", "name: expected the name of one folder in runs/"),
        ("name='a\\b'", "name: expected the name of one folder in runs/"),
        ("name=..", "name: expected the name of one folder in runs/"),
        ("classes=[a,b,a]", "classes: expected each class once, got 'a' more than once"),
    ],
)
def test_door_2_root_types(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_options.check_root(composed(override))
    assert str(caught.value).startswith(message)


def test_door_2_unknown_root_key() -> None:
    cfg = composed()
    with open_dict(cfg):
        cfg.max_stepps = 3
    with pytest.raises(ConfigError, match="max_stepps"):
        train_options.check_root(cfg)


def test_door_2_missing_value() -> None:
    with pytest.raises(ConfigError, match="input"), initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config.to_plain(compose("make_shards"))


def test_door_3_tells_all_problems_at_once_with_the_nearest_name() -> None:
    node = {
        "_target_": "audio_diffusion.networks.unet1d.UNet1d",
        "chanels": 1,
        "patch_size": "eight",
        "attention": 1,
    }
    problems = config.target_problems(node, "model")
    assert (
        "model.chanels: audio_diffusion.networks.unet1d.UNet1d has no such argument. Did you mean 'channels'?"
        in problems
    )
    assert "model.patch_size: expected int, got 'eight'" in problems
    assert "model.attention: expected bool, got 1" in problems
    assert "model.channels: audio_diffusion.networks.unet1d.UNet1d needs this argument" in problems
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("audio_diffusion.networks.unet1d.UNet", "has no 'UNet'. Did you mean 'UNet1d'?"),
        ("audio_difusion.models.UNet1d", "cannot import 'audio_difusion.models'"),
    ],
)
def test_door_3_targets(target: str, message: str) -> None:
    (problem,) = config.target_problems({"_target_": target}, "model")
    assert problem.startswith("model._target_: ")
    assert message in problem


def test_door_3_unions_literals_and_nested_targets() -> None:
    optimizer = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": "fast"}
    assert config.target_problems({"a": {"optimizer": optimizer}}) == ["a.optimizer.lr: expected float, got 'fast'"]
    ddpm = {"_target_": "audio_diffusion.diffusion.solvers.ddpm.ddpm", "_partial_": True, "variance": "beta"}
    assert config.target_problems(ddpm) == []
    assert config.target_problems({**ddpm, "num_steps": None}) == []


def test_door_3_lists() -> None:
    node = {"_target_": "audio_diffusion.networks.unet1d.UNet1d", "channels": 1, "conditions": {}}
    assert config.target_problems({**node, "widths": 8}, "model") == ["model.widths: expected a list, got 8"]
    assert config.target_problems({**node, "widths": [8, "a"]}, "model") == ["model.widths: expected int, got 'a'"]
    assert config.target_problems({**node, "widths": [8, 16]}, "model") == []


def test_door_3_numbers_are_finite_but_where_the_default_is_not() -> None:
    optimizer = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": math.inf}
    assert config.target_problems(optimizer, "o") == ["o.lr: expected a finite number, got inf"]
    augment = {"_target_": "audio_diffusion.data.transforms.Augment", "gain_db": [math.nan, 0]}
    assert config.target_problems(augment, "a") == ["a.gain_db: expected a finite number, got nan"]
    bounded = {"_target_": f"{__name__}.Bounded", "low": math.inf, "high": math.inf}
    assert config.target_problems(bounded, "b") == ["b.low: expected a finite number, got inf"]
    assert config.target_problems({**bounded, "low": 0.0, "high": math.nan}, "b") == [
        "b.high: expected a finite number, got nan"
    ]


class Bounded:
    """Somebody's own part, which has infinity for "without a bound"."""

    def __init__(self, low: float = 0.0, high: float = math.inf):
        self.low, self.high = low, high


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (math.nan, float | None, "n: expected a finite number, got nan"),
        (math.inf, int, "n: expected a finite number, got inf"),
        ([[0.1, math.nan]], list[list[float]], "n: expected a finite number, got nan"),
        ("abc", int, "n: expected int, got 'abc'"),
        (None, int, "n: expected int, got nothing"),
        ("", str, "n: expected a value, got nothing"),
        ("kick", list[str] | None, "n: expected a list, got 'kick'"),
        ("x", dict | None, "n: expected a mapping, {name: value}, got 'x'"),
    ],
)
def test_types_of_the_other_programs_options(value, kind, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_types({"n": value}, {"n": kind})
    assert str(caught.value).startswith(message)
    check_types({"n": None}, {"n": int | None})


def test_values_inside_a_target_are_named_by_their_whole_place() -> None:
    schedule = {"_target_": "audio_diffusion.diffusion.schedules.linear", "num_steps": 0}
    parameterization = {"_target_": "audio_diffusion.diffusion.parameterization.Epsilon"}
    node = {"_target_": "audio_diffusion.diffusion.process.Diffusion", "schedule": schedule}
    with pytest.raises(ConfigError, match=r"^diffusion\.schedule\.betas: expected at least one step"):
        config.build({**node, "parameterization": parameterization}, "diffusion")


def test_options_are_written_without_dashes(run_program: Run, tmp_path: Path) -> None:
    done = run_program(tmp_path, "train.py", "--max_steps=5")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: --max_steps=5: options are written without dashes: max_steps=5"
    assert "Traceback" not in done.stderr


def test_door_4_values_name_the_argument_the_value_and_the_rule() -> None:
    node = {"_target_": "audio_diffusion.networks.unet1d.UNet1d", "channels": 1, "patch_size": 7}
    with pytest.raises(ConfigError, match=r"model\.patch_size: expected an even number of samples, at least 2, got 7"):
        config.build(node, "model")


def test_build_passes_given_objects_on_as_they_are() -> None:
    schedule = config.build({"_target_": "audio_diffusion.diffusion.schedules.linear"}, "s")
    process = config.build(
        {"_target_": "audio_diffusion.diffusion.process.Diffusion"}, "p", schedule=schedule, parameterization=V()
    )
    assert process.schedule is schedule


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py", "make_shards.py"])
def test_scripts_end_in_one_line_and_status_2(run_program: Run, script: str, tmp_path: Path) -> None:
    done = run_program(tmp_path, script, "nmae=x")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nmae: there is no such option.")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_train_names_missing_data(run_program: Run, tmp_path: Path) -> None:
    done = run_program(tmp_path, "train.py", "data.train=nowhere")
    assert done.returncode == 2
    assert "error: data.train: shards: expected files at 'nowhere'" in done.stderr
    assert "make_shards.py input=FOLDER output=SHARDS" in done.stderr


def test_train_names_a_server_that_is_not_there(run_program: Run, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/shards"
    done = run_program(tmp_path, "train.py", f"data.train={address}", "data.store.retries=0")
    assert done.returncode == 2
    assert f"error: {address}/manifest.json: the connection failed" in done.stderr
    assert "Traceback" not in done.stderr


GROUPS = [
    f"{folder.relative_to(CONFIG_DIR).as_posix()}={file.stem}"
    for folder in sorted(CONFIG_DIR.rglob("*"))
    if folder.is_dir() and folder.name not in ("task", "metrics", "embedding")  # of sample.py and evaluate.py
    for file in sorted(folder.glob("*.yaml"))
]


@pytest.mark.parametrize("choice", GROUPS)
def test_every_shipped_config_composes_and_its_arguments_exist(choice: str) -> None:
    cfg = composed(choice)
    cfg.trainer.precision = "32-true"
    train_options.check_root(cfg)
    plain = config.to_plain(cfg)
    assert [p for p in config.target_problems(plain) if not p.startswith("training.")] == []
    given = ("net", "process", "representation")
    assert config.target_problems(plain["training"], "training", given) == []


def _evaluating(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return config.to_plain(compose("evaluate", overrides=["ckpt=x", *overrides]))


@pytest.mark.parametrize("name", [file.stem for file in sorted((CONFIG_DIR / "metrics").glob("*.yaml"))])
def test_every_shipped_metric_composes_and_keeps_the_contract(name: str) -> None:
    nodes = _evaluating(f"metrics=[{name}]")["metrics"]
    if name == "text_agreement":
        with pytest.raises(ConfigError, match="expected a CLAP"):
            evaluation.build_metrics(nodes)
    else:
        assert len(evaluation.build_metrics(nodes)) == 1


def test_distances_share_one_metric_and_one_embedding() -> None:
    nodes = _evaluating("metrics=[kad,fad,neighbours]", "embedding=yamnet")["metrics"]
    assert list(nodes) == ["distances"]
    assert list(nodes["distances"]["measures"]) == ["kad", "fad", "neighbours"]
    assert nodes["distances"]["embedding"]["_target_"].endswith("YAMNet")


@pytest.mark.parametrize("name", [file.stem for file in sorted((CONFIG_DIR / "embedding").glob("*.yaml"))])
def test_every_shipped_embedding_composes_and_its_arguments_exist(name: str) -> None:
    model = ["embedding.model=x"] if name == "pretrained" else []
    assert config.target_problems(_evaluating("metrics=[kad]", f"embedding={name}", *model)) == []


@pytest.mark.parametrize("choice", ["default", "v_cosine", "zero_snr", "edm", "flow"])
def test_the_schedules_we_recommend_end_in_noise_and_reach_quiet_sounds(choice: str) -> None:
    process = config.build(config.to_plain(composed(f"diffusion={choice}"))["diffusion"], "diffusion")
    (line,) = report.describe(process)  # no warnings
    assert "the lowest noise is -90 dB" in line


@pytest.mark.parametrize(
    "choice",
    [c for c in GROUPS if re.split("[=/]", c)[0] in ("model", "condition", "diffusion", "sampler", "experiment")],
)
def test_every_shipped_model_condition_diffusion_sampler_and_experiment_steps(choice: str) -> None:
    needs = {"velocity": ["diffusion=flow"], "edm": ["diffusion=edm"]}  # these predictions are for their own processes
    of_prediction = needs.get(choice.split("=")[1], []) if "parameterization" in choice else []
    small = ["model.widths=[8,64]", "model.factors=[4]", "audio.num_samples=2048"]
    if choice in ("experiment=sc09", "experiment=vocoder") or choice.startswith("model=diffwave"):
        small = [
            "model.num_layers=2",
            "audio.num_samples=1024",
        ]  # minutes otherwise; sizes: tests/networks/test_diffwave
    elif choice.startswith(("model", "experiment")):
        small = []
    plain = config.to_plain(composed(choice, *of_prediction, *small))
    net = config.build(plain["model"], "model")
    process = config.build(plain["diffusion"], "diffusion")
    sampler = config.build(plain["sampler"], "sampler")
    channels, num_samples = plain["audio"]["channels"], plain["audio"]["num_samples"]
    x0 = 0.1 * torch.randn(2, channels, num_samples)
    t, nothing = process.time_of(torch.tensor([0.1, 0.9])), net.conditions.given({}, 2, "cpu")
    cond = {name: torch.cat([torch.zeros_like(value[:1]), value[1:]]) for name, value in nothing.items()}
    process.loss(net, x0, torch.randn_like(x0), t, cond).mean().backward()
    steps = {"num_steps": None if choice.endswith("of_betas") else 3}
    with torch.no_grad():
        denoise = process.denoiser(net, cond)
        made = sampler(denoise, torch.randn_like(x0), process.schedule, lambda: torch.randn_like(x0), **steps)
    assert made.shape == x0.shape
    assert made.isfinite().all()


def test_conditions_are_chosen_in_one_group_and_say_what_is_read_of_the_data() -> None:
    plain = config.to_plain(composed("condition=[label,caption,embedding,mel,seconds]"))
    names = ["label", "caption", "text", "mel", "seconds_start", "seconds_total"]
    assert list(plain["model"]["conditions"]) == names
    assert plain["data"]["reading"]["fields"] == ["caption", "text.npy"]
    assert config.to_plain(composed("condition=[]"))["model"]["conditions"] == {}
    assert (
        config.to_plain(composed("condition=caption", "model.conditions.caption=null"))["data"]["reading"]["fields"]
        == []
    )


def test_resolved_config_is_plain_and_yaml() -> None:
    plain = config.to_plain(composed())
    assert OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(plain)))) == plain
    assert plain["model"]["conditions"]["label"]["num_classes"] == 2


def test_whole_numbers_may_be_written_as_floats() -> None:
    cfg = OmegaConf.create({"max_steps": 1e5, "batch_size": 2.5, "audio": {"num_samples": 1e4, "channels": 1}})
    train_options._take_whole_floats(cfg)
    assert cfg == {"max_steps": 100_000, "batch_size": 2.5, "audio": {"num_samples": 10_000, "channels": 1}}
    assert [type(value) for value in (cfg.max_steps, cfg.audio.num_samples)] == [int, int]


@pytest.mark.parametrize(
    ("options", "added"),
    [
        (["sampler.num_steps=50"], {"num_steps": 50}),
        (["sampler=null", "sampler.num_steps=50", "sampler.grid.share=0.2"], {"num_steps": 50, "grid": {"share": 0.2}}),
        (
            ["sampler/grid=karras", "sampler.grid.rho=5"],
            {"grid": {"_target_": "audio_diffusion.diffusion.grids.karras", "_partial_": True, "rho": 5,
                      "sigma_min": None, "sigma_max": None}},
        ),
    ],
)  # fmt: skip
def test_options_without_a_sampler_are_those_of_the_runs_own(options: list[str], added: dict[str, Any]) -> None:
    cfg = config.read_command_line("sample", ["ckpt=x", *options])[0]
    given = config.to_plain(cfg)["sampler"]
    assert given == added
    own = config.to_plain(config.read_command_line("train", ["name=x", "sampler=heun"])[0])["sampler"]
    changed = own_parts.sampler_of(own, given)
    assert {key for key in own if own[key] != changed[key]} == set(given)
    assert config.build(changed, "sampler").func is heun
    assert own_parts.sampler_of(own, None) is own


def test_a_misspelt_option_of_the_runs_own_sampler_is_refused_with_the_nearest() -> None:
    given = config.to_plain(config.read_command_line("sample", ["ckpt=x", "sampler.num_stepz=5"])[0])["sampler"]
    own = config.to_plain(config.read_command_line("train", ["name=x"])[0])["sampler"]
    with pytest.raises(ConfigError, match=r"sampler\.num_stepz: .* Did you mean 'num_steps'"):
        config.build(own_parts.sampler_of(own, given), "sampler")


def test_a_configuration_is_composed_and_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed, checked, seen = [], [], []
    load = ConfigLoaderImpl.load_configuration

    def counted(self, *args, **kwargs):
        composed.append(args)
        return load(self, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    monkeypatch.setattr(sys, "argv", ["train.py", "name=once", "max_steps=3"])
    program.run("train", seen.append, lambda cfg: (checked.append(cfg), train_options.check_root(cfg))[1])
    assert len(composed) == len(checked) == 1
    assert [(cfg.name, cfg.max_steps, "hydra" in cfg) for cfg in seen] == [("once", 3, False)]
    assert sys.argv == ["train.py", "name=once", "max_steps=3"]


def test_options_of_hydra_itself_are_left_to_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    monkeypatch.setattr(sys, "argv", ["train.py", "max_steps=3.0", "hydra.verbose=false"])
    program.run("train", seen.append, train_options.check_root)
    assert [cfg.max_steps for cfg in seen] == [3]  # the checks, which make an integer of it, were run
    assert sys.argv == ["train.py", "max_steps=3.0", "hydra.verbose=false"]


@pytest.mark.parametrize(("steps", "lines"), [(19, 1), (20, 0)])
def test_a_run_too_short_for_a_row_of_the_log_is_told_so(steps: int, lines: int) -> None:
    options = ["name=x", f"max_steps={steps}", "log_every_steps=20"]
    given = TrainOptions.of(config.read_command_line("train", options)[0])
    said = "no training loss is logged: log_every_steps=20 is more than max_steps=19"
    assert train.report(given).count(said) == lines


def test_weights_that_do_not_fit_are_one_line() -> None:
    class Trainer:
        def fit(self) -> None:
            torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())

    with pytest.raises(ConfigError, match=r"^ckpt: .* size mismatch for weight: [^\n]*\. Choose [^\n]*$"):
        train.fit(Trainer())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sample", ["ckpt=x", "sampler.num_steps=5"]),
        ("sample", ["ckpt=x", "task=inpaint", "input=a.wav", "regions=[[0,1]]"]),
        ("evaluate", ["ckpt=x"]),
        ("export", ["ckpt=x", "output=y"]),
        ("make_shards", ["input=x", "output=y"]),
        ("report", ["runs=[x,y]"]),
    ],
)
def test_the_root_options_of_a_program_are_the_fields_of_its_dataclass(name: str, options: list[str]) -> None:
    cfg, _ = config.read_command_line(name, options)
    check(name, cfg)
    found, plain = read(name, cfg), config.to_plain(cfg)
    given = found.record() if name == "sample" else asdict(found)
    assert {key: value for key, value in given.items() if value is not None or key in plain} == plain
    assert {field.name for field in fields(found)} - {"task_options", "sampler", "input"} <= plain.keys()
