"""Prepares the typed arguments for Hydra: quotes values that Hydra cannot parse, and explains habits from other
programs."""

import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from audio_diffusion.inference.targets import ConfigError

#: Hydra's flags, and the number of values that follow each
_FLAGS = {
    "--help": 0, "-h": 0, "--hydra-help": 0, "--version": 0, "--cfg": 1, "-c": 1, "--resolve": 0, "-r": 0,
    "--package": 1, "-p": 1, "--run": 0, "--info": 1, "-i": 1, "--shell-completion": 0, "-sc": 0, "--config-path": 1,
    "-cp": 1, "--config-name": 1, "-cn": 1, "--config-dir": 1, "-cd": 1, "--experimental-rerun": 1,
}  # fmt: skip
_SWEEP = ("--multirun", "-m")
#: options whose value is text even if it looks like a number: name=123
_WORDS = {
    "name", "run_dir", "ckpt", "init", "weak_ckpt", "output", "real", "input", "verify", "manifest", "reference",
    "folder", "negative", "device", "data.train", "data.val",
}  # fmt: skip
#: options whose value is a list of words: labels=[0,1]
_WORD_LISTS = {"labels", "classes"}
_ITEM = r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,'"\[\]{}]+)\s*"""
_EXAMPLES = {
    "train": "max_steps=100", "sample": "num_samples=16", "evaluate": "num_clips=16", "export": "weights=raw",
    "make_shards": "format=flac", "report": "output=page.html",
}  # fmt: skip
#: options that arguments without a name probably mean, by program
_POSITIONS = {
    "sample": ("ckpt",), "evaluate": ("ckpt", "data"), "export": ("ckpt", "output"), "make_shards": ("input", "output"),
}  # fmt: skip

#: arguments of Lightning's Trainer that this project sets elsewhere, and the alternatives
ELSEWHERE = {
    "trainer.overfit_batches": "to check that the model can overfit a few clips, train on these alone: "
    "make_shards.py input=FOLDER_OF_THEM output=data/few val_fraction=0, then data.train=data/few",
    "trainer.limit_train_batches": "write max_steps=N: the stream of training clips has no end",
    "trainer.limit_test_batches": "write evaluate.py ckpt=RUN num_clips=N",
    "trainer.limit_predict_batches": "write sample.py ckpt=RUN num_samples=N",
    "trainer.max_time": "write timeout 2h python train.py ..: its signal makes the run save and stop; the same command "
    "resumes it; under Slurm use --time",
    "trainer.max_epochs": "write max_steps=N: training is counted in optimizer steps",
    "trainer.min_epochs": "write max_steps=N: training is counted in optimizer steps",
    "trainer.min_steps": "write max_steps=N",
    "trainer.fast_dev_run": "write trainer=debug: four steps that use every part",
    "trainer.val_check_interval": "write val_every_steps=N",
    "trainer.check_val_every_n_epoch": "write val_every_steps=N",
    "trainer.log_every_n_steps": "write log_every_steps=N",
    "trainer.logger": "write logger=wandb, tensorboard or csv, or logger=null",
    "trainer.callbacks": "callbacks are a group of options: callbacks.NAME.option=VALUE, or callbacks.NAME=null",
    "trainer.enable_checkpointing": "write callbacks.checkpoint=null to save none",
    "trainer.default_root_dir": "write run_dir=FOLDER",
    "trainer.enable_model_summary": "the number of parameters is printed at the start",
    "trainer.use_distributed_sampler": "the stream is already divided among the ranks",
    "trainer.reload_dataloaders_every_n_epochs": "the stream of training clips has no end, and no epochs",
    "trainer.plugins": "the plugins are chosen by trainer.precision=NAME, callbacks.checkpoint",
}


_command: str | None = None  # arguments after audio-diffusion


def take_command(name: str) -> None:
    """Removes the program's name from the command line ``audio-diffusion train ..`` and returns it."""
    global _command
    _command = name


def taken() -> str | None:
    """Returns the arguments after ``audio-diffusion``; None in a checkout."""
    return _command


def typed() -> list[str]:
    """Returns the program's arguments as typed; those of ``verify`` and ``evaluate`` with their options' names."""
    arguments = sys.argv[1:] if _command is None else sys.argv[2:]
    if _command == "verify":
        if arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
            arguments[0] = f"verify={arguments[0]}"
        elif not any(argument.startswith(("verify=", "-")) for argument in arguments):
            raise ConfigError("verify: expected the shards to check: audio-diffusion verify SHARDS")
    return _named_runs(arguments) if _command == "report" else arguments


def _named_runs(arguments: Sequence[str]) -> list[str]:
    """Converts the arguments of ``report``: folders become the option ``runs``."""
    folders = [a for a in arguments if not a.startswith("-") and ("=" not in a or Path(a).is_dir())]
    rest = [a for a in arguments if a not in folders]
    if folders and any(a.startswith("runs=") for a in rest):
        raise ConfigError("runs: expected folders with or without runs=, not both")
    if not folders and not any(a.startswith(("runs=", "-")) for a in rest):
        raise ConfigError("report: expected the folder of a run: audio-diffusion report runs/quickstart")
    return [*rest, f"runs=[{','.join(map(_quoted, folders))}]"] if folders else rest


def command(program: str) -> str:
    """Returns how to call a program, in the way that this one was started."""
    if _command is None:
        return f"python {program}.py"
    return f"audio-diffusion {'pack' if program == 'make_shards' else program}"


def prepare(arguments: Sequence[str], program: str) -> list[str]:
    """Returns the arguments in a form that Hydra can parse; its own flags come first.

    Values that Hydra cannot parse (``a=b/x.ckpt``, ``naïve#1``) are quoted, ``~/`` is expanded, and text options stay
    text.

    Raises:
        ConfigError: for unknown flags and for ``--option value``, with the correct form.
    """
    flags, options = _split(arguments)
    if program == "evaluate":  # Hydra would interpret data as the group of train.yaml, and SHARDS as a file in it
        options = [f"reference={o.removeprefix('data=')}" if o.startswith("data=") else o for o in options]
        _refuse_moved(options)
    for option in options:
        _refuse_positions(option, options, program)
    if any(flag in _SWEEP for flag in flags):
        raise ConfigError(_one_command_a_run(options, program))
    return [*flags, *map(_readable, options)]


def _refuse_moved(options: Sequence[str]) -> None:
    """Explains options of evaluate.py that have other names now.

    Raises:
        ConfigError: if there is one.
    """
    for option in options:
        name = option.partition("=")[0]
        if name.partition(".")[0] in ("bound", "flow"):
            raise ConfigError(f"{option}: write metrics.likelihood.{option}")
        if name == "shards":
            raise ConfigError(f"{option}: write data={option.removeprefix('shards=')}")


def without_flags(arguments: Sequence[str]) -> list[str]:
    """Returns only the options."""
    return _split(arguments)[1]


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates Hydra's flags, with their values, from the options.

    Raises:
        ConfigError: for an unknown flag.
    """
    flags: list[str] = []
    options: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, given, _ = argument.partition("=")
        if flag in _FLAGS or flag in _SWEEP:
            flags.append(argument)
            takes = 0 if given else _FLAGS.get(flag, 0)
            if takes and rest and not rest[0].startswith("-") and "=" not in rest[0]:
                flags.append(rest.pop(0))
        elif re.match(r"-+[A-Za-z]", argument):
            raise ConfigError(_without_dashes(argument, rest))
        else:
            options.append(argument)
    return flags, options


def _without_dashes(argument: str, rest: Sequence[str]) -> str:
    """Returns the message for ``--option value``, ``--option=value`` or ``--option``, with the correct form."""
    name, given, _ = argument.lstrip("-").partition("=")
    follows = not given and rest and not rest[0].startswith("-") and "=" not in rest[0]
    if given:
        return f"{argument}: options are written without dashes: {argument.lstrip('-')}"
    typed = f"{argument} {rest[0]}" if follows else argument
    return f"{typed}: options are written without dashes: {name.replace('-', '_')}={rest[0] if follows else 'VALUE'}"


def _refuse_positions(option: str, options: Sequence[str], program: str) -> None:
    """Rejects arguments without a name.

    Raises:
        ConfigError: if there is one, with the option that was probably meant.
    """
    name, given, _ = option.partition("=")
    if (name and given) or option.startswith(("+", "~")):
        return
    nameless = [o for o in options if "=" not in o]
    names = [name for name in _POSITIONS.get(program, ()) if not any(o.startswith(f"{name}=") for o in options)]
    if name and len(nameless) <= len(names) and re.match(r"[\w./~ -]+$", option):
        pairs = [f"{name}={shlex.quote(value)}" for name, value in zip(names, nameless, strict=False)]
        raise ConfigError(f"{option}: expected OPTION=VALUE; did you mean {' '.join(pairs)}?")
    raise ConfigError(f"{option}: expected OPTION=VALUE, such as {_EXAMPLES.get(program, 'seed=1')}")


def _parse(option: str):  # type: ignore[no-untyped-def]
    """Parses an option with Hydra's parser; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(option)
    except HydraException:
        return None


def _quoted(value: str) -> str:
    """Quotes a value so that Hydra reads it literally, except for interpolations (``${..}``)."""
    doubled = re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", value))
    return f"'{doubled}'"


def _readable_words(value: str) -> str:
    """Converts a list of words, such as ``[0,true,x=y]``, for Hydra: quotes items that it would not read as words."""
    if not re.fullmatch(rf"\[{_ITEM}(?:,{_ITEM})*\]", value):
        return value
    items = []
    for item in (item.strip() for item in re.findall(_ITEM, value[1:-1])):
        read = _parse(f"labels={item}") if item[0] not in "'\"" else None
        is_word = item[0] in "'\"" or (read is not None and (read.value() is None or isinstance(read.value(), str)))
        items.append(item if is_word else _quoted(item))
    return f"[{','.join(items)}]"


def _readable(option: str) -> str:
    """Returns an option that Hydra can parse, quoted if necessary."""
    name, given, value = option.partition("=")
    if name in _WORD_LISTS and value.startswith("["):
        return f"{name}={_readable_words(value)}"
    if not given or not value or option.startswith(("+", "~")) or value[0] in "[{'\"(":
        return option
    if value.startswith("~"):
        value = os.path.expanduser(value)
    read, quoted = _parse(f"{name}={value}"), f"{name}={_quoted(value)}"
    if read is None:
        return quoted if _parse(quoted) is not None else option
    is_word = name in _WORDS and value not in ("null", "None") and "${" not in value
    if is_word and (read.is_sweep_override() or str(read.value()) != value or not isinstance(read.value(), str)):
        return quoted
    return f"{name}={value}"


def alternatives(options: Sequence[str]) -> Iterator[list[str]]:
    """Returns every combination of the alternatives separated by commas, as Hydra's multirun would."""
    choices: list[list[str]] = []
    for option in options:
        read = _parse(option)
        is_sweep = read is not None and read.is_sweep_override()
        key = option.partition("=")[0]
        choices.append([f"{key}={value}" for value in read.sweep_string_iterator()] if is_sweep else [option])
    for combination in itertools.product(*choices):
        yield list(combination)


def _one_command_a_run(options: Sequence[str], program: str) -> str:
    """Returns the message for ``-m``, with one command for each run."""
    combinations = list(alternatives(options))
    name = next((o.partition("=")[2] for o in reversed(options) if o.startswith("name=")), "NAME")
    own = {c for combination in combinations for c in combination if c.startswith("name=")}
    lines = []
    for number, combination in enumerate(combinations[:8]):
        command = [o for o in combination if not o.startswith("name=") or len(own) == len(combinations)]
        if program == "train" and len(own) < len(combinations):
            command.append(f"name={name}_{number}")
        lines.append(shlex.join(["python", f"{program}.py", *command]))
    if len(combinations) > 8:
        lines.append(f".. and {len(combinations) - 8} more")
    listed = "\n       ".join(lines)
    sweep = shlex.join(["sbatch", f"--array=0-{len(combinations) - 1}", "slurm/sweep.sh", *options])
    cluster = f"\nOn a cluster: {sweep}" if program == "train" and len(combinations) > 1 else ""
    what = "one run, which has its own folder" if program == "train" else "one command"
    return f"-m: a process executes {what}. Use one command after the other:\n       {listed}{cluster}"


def explain_sweep(option: str, program: str) -> str:
    """Returns the message for a value with a comma, with the alternatives."""
    key, _, value = option.partition("=")
    return (
        f"{option}: for a list write {shlex.quote(f'{key}=[{value}]')}; for one value with a comma "
        f"\"{key}='{value}'\"; to try one after the other, one command each"
    )


def is_sweep(option: str) -> bool:
    """Whether Hydra parses an option's value as several alternatives."""
    read = _parse(option)
    return read is not None and read.is_sweep_override()
