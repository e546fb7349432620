"""What is typed: values that Hydra cannot read, habits of other programs, and commands of the documentation."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from audio_diffusion.cli import command_line, config, train_options
from audio_diffusion.cli.config import ConfigError

ROOT = Path(__file__).parents[2]
PROGRAMS = ["train", "sample", "evaluate", "export", "make_shards"]


def read(*arguments: str, program: str = "train") -> dict:
    """The arguments as Hydra reads them."""
    from hydra import compose, initialize_config_dir

    prepared = command_line.prepare(arguments, program)
    with initialize_config_dir(str(config.CONFIG_DIR), version_base="1.3"):
        return compose(program, overrides=prepared)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("name=123", "123"),
        ("name=007", "007"),
        ("name=true", "true"),
        ("name=1e3", "1e3"),
        ("ckpt=1000", "1000"),
        ("ckpt=a=b/x.ckpt", "a=b/x.ckpt"),
        ("ckpt=runs/a#1/step_1.ckpt", "runs/a#1/step_1.ckpt"),
        ("name=größer", "größer"),
        ("ckpt=it's/x.ckpt", "it's/x.ckpt"),
        ("ckpt=a,b.ckpt", "a,b.ckpt"),
        ("ckpt=~/x.ckpt", str(Path.home() / "x.ckpt")),
        ("ckpt=a~b", "a~b"),
        ("ckpt=x (copy)/y.ckpt", "x (copy)/y.ckpt"),
        ("name='quoted already'", "quoted already"),
        ("name=plain-name_1.2", "plain-name_1.2"),
    ],
)
def test_words_are_taken_as_they_are_typed(typed: str, value: str) -> None:
    assert read(typed)[typed.partition("=")[0]] == value


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("classes=[0, 1,007]", ["0", "1", "007"]),
        ("classes=[true,1e3,1.50]", ["true", "1e3", "1.50"]),
        ("classes=[x=y,naïve#1,-dash,kick]", ["x=y", "naïve#1", "-dash", "kick"]),
        ("classes=['a,b',\"it's\",0]", ["a,b", "it's", "0"]),
        ("classes=[kick drum,snare]", ["kick drum", "snare"]),
        ("classes=[]", []),
    ],
)
def test_items_of_lists_of_words_are_taken_as_they_are_typed(typed: str, values: list[str]) -> None:
    assert read(typed)[typed.partition("=")[0]] == values


@pytest.mark.parametrize("typed", ["max_steps=5", "data.train=[a,b]", "data.train={a: x, b: y}", "name='x'", "name="])
def test_what_hydra_reads_by_itself_stays_as_it_is(typed: str) -> None:
    assert command_line.prepare([typed], "train") == [typed]
    assert command_line.prepare(command_line.prepare(["name=a=b"], "train"), "train") == ["name='a=b'"]  # ranks do


def test_a_name_that_is_a_number_passes_the_root_types() -> None:
    cfg = read("classes=[a]")
    cfg.name = 123
    train_options.check_root(cfg)
    assert cfg.name == "123"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "speech"], "--experiment speech: options are written without dashes: experiment=speech"),
        (["--name", "x", "max_steps=5"], "--name x: options are written without dashes: name=x"),
        (["--max-steps", "5"], "--max-steps 5: options are written without dashes: max_steps=5"),
        (["--seed=5"], "--seed=5: options are written without dashes: seed=5"),
        (["--seed", "name=x"], "--seed: options are written without dashes: seed=VALUE"),
        (["-x"], "-x: options are written without dashes: x=VALUE"),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_dashes_are_explained(arguments: list[str], message: str, program: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command_line.prepare(arguments, program)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("make_shards", ["FOLDER", "OUT"], "FOLDER: expected OPTION=VALUE; did you mean input=FOLDER output=OUT?"),
        ("make_shards", ["a.wav", "b", "c"], "a.wav: expected OPTION=VALUE, such as format=flac"),
        ("sample", ["runs/x"], "runs/x: expected OPTION=VALUE; did you mean ckpt=runs/x?"),
        ("evaluate", ["runs/x", "seed=1"], "runs/x: expected OPTION=VALUE; did you mean ckpt=runs/x?"),
        ("export", ["runs/x", "out"], "runs/x: expected OPTION=VALUE; did you mean ckpt=runs/x output=out?"),
        ("train", ["speech"], "speech: expected OPTION=VALUE, such as max_steps=100"),
    ],
)
def test_arguments_without_a_name(program: str, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command_line.prepare(arguments, program)
    assert str(caught.value) == message


@pytest.mark.slow
def test_flags_of_hydra_are_kept_and_options_are_checked_beside_them() -> None:
    arguments = ["--cfg", "job", "name=7", "--resolve"]
    assert command_line.prepare(arguments, "train") == ["--cfg", "job", "--resolve", "name='7'"]
    assert command_line.without_flags(arguments) == ["name=7"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--cfg", "job", "max_step=5"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: max_step: there is no such option. Did you mean 'max_steps'?\n"
    assert "Traceback" not in done.stderr


def test_the_configuration_is_printed_resolved_without_data() -> None:
    plain = OmegaConf.to_container(read(), resolve=True)
    assert plain["model"]["conditions"]["label"]["num_classes"] is None  # known once the data are read


def test_a_sweep_says_one_command_for_each_run() -> None:
    with pytest.raises(ConfigError) as caught:
        command_line.prepare(["-m", "seed=0,1", "name=x", "classes=[a,b]"], "train")
    lines = str(caught.value).splitlines()
    assert lines[1].strip() == "python train.py seed=0 'classes=[a,b]' name=x_0"
    assert lines[2].strip() == "python train.py seed=1 'classes=[a,b]' name=x_1"
    assert lines[3] == "On a cluster: sbatch --array=0-1 slurm/sweep.sh seed=0,1 name=x 'classes=[a,b]'"
    with pytest.raises(ConfigError, match=r"python train.py name=a\n +python train.py name=b\n"):
        command_line.prepare(["--multirun", "name=a,b"], "train")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("seed=0,1", "for a list write 'seed=[0,1]'"),
        ("trainer.overfit_batches=1", "data.train=data/few"),
        ("+trainer.overfit_batches=1", "data.train=data/few"),
        ("trainer.max_time=00:01:00:00", "timeout 2h python train.py"),
        ("trainer.val_check_interval=5", "val_every_steps=N"),
        ("+trainer.fast_dev_run=true", "trainer=debug"),
        ("~callbacks.sampling", "Write callbacks.sampling=null to leave out what exists"),
        ("data.train=[a=b]", "data.train=[a=b]: cannot be read"),
        ("model.head_width=32", "model.head_width: there is no such option"),
    ],
)
def test_what_is_refused_says_the_way(option: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.read_command_line("train", [option])[0]
    assert words in str(caught.value)


def test_every_trainer_argument_that_is_said_elsewhere_is_lightnings_and_none_of_ours() -> None:
    import inspect

    from lightning import Trainer

    ours = OmegaConf.load(config.CONFIG_DIR / "trainer" / "auto.yaml")
    for name in command_line.ELSEWHERE:
        argument = name.removeprefix("trainer.")
        assert argument in inspect.signature(Trainer).parameters
        assert argument not in ours


@pytest.mark.parametrize(
    "options",
    [
        ["logger=null"],
        ["diffusion/weight=null"],
        ["trainer.limit_val_batches=2", "trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.1"],
        ["callbacks.checkpoint=null"],
    ],
)
def test_what_can_be_left_out_or_limited(options: list[str]) -> None:
    config.read_command_line("train", options)[0]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_an_optimizer_is_one_option_and_experiments_set_its_rate(name: str) -> None:
    plain = config.to_plain(read(f"training/optimizer={name}", "classes=[a]"))["training"]["optimizer"]
    assert config.target_problems(plain, "training.optimizer") == []
    assert plain["lr"] == 2e-3  # of experiment=drums


def test_a_debug_run_has_a_folder_of_its_own_and_begins_anew() -> None:
    plain = config.to_plain(read("trainer=debug", "name=x", "classes=[a]"))
    assert (plain["run_dir"], plain["ckpt"], plain["trainer"]["max_steps"]) == ("runs/x_debug", "overwrite", 4)
    assert plain["trainer"]["limit_val_batches"] == 2
    assert plain["trainer"]["_target_"] == "lightning.Trainer"


def test_the_old_name_of_ckpt_overwrite_is_accepted() -> None:
    cfg = read("name=x", "ckpt=anew")
    train_options.check_root(cfg)
    assert cfg.ckpt == "overwrite"


def commands_in(text: str) -> list[str]:
    """The commands of a page: lines of indented and fenced blocks and code spans that begin with a program."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += [line.strip() for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    starts = r"(?:[A-Z_]+=\S+ )*(?:\S*python\S* |sbatch |pip |make |git |docker |apptainer |wandb |torchrun |srun )"
    options = r"(?:[a-z_]+(?:[./][a-z_]+)*=\S.*)$"
    return [line for line in lines if re.match(starts, line) or (re.match(options, line) and " " not in line[:3])]


PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_documentation_can_be_typed_into_any_shell(page: str) -> None:
    """zsh ends with "no matches found" at a bracket or star without quotes, and bash takes braces apart."""
    for command in commands_in((ROOT / page).read_text()):
        typed = re.sub(r"\s#.*$", "", command)
        bare = re.sub(r"\\.|'[^']*'|\"[^\"]*\"|\$\{?\w+\}?", "", typed)
        assert not re.search(r"[\[\]{}*?~]", bare), f"{page}: {command}"


def test_zsh_passes_quoted_commands_on(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    commands = [c for page in PAGES for c in commands_in((ROOT / page).read_text()) if c.startswith("python train.py")]
    assert commands
    for command in commands:
        done = subprocess.run(
            ["zsh", "-fc", f"python() {{ print -rl -- $@ }}; {command}"], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout.startswith("train.py\n")
