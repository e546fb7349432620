"""Loads and checks configurations; an invalid one ends the program with one clear error.

There are four checks ("doors"), which are not repeated elsewhere: (1) option names, by Hydra, with the nearest name
added; (2) root keys and types, by a strict merge into ``Config``; (3) each ``_target_``'s arguments against its
signature, all problems at once; (4) values, by constructors, which raise ``ValueError``.
"""

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from audio_diffusion.checkpoints.signals import STOP_FILE
from audio_diffusion.cli import command_line, own_parts
from audio_diffusion.inference.targets import ConfigError as ConfigError
from audio_diffusion.inference.targets import build as build
from audio_diffusion.inference.targets import check_types as check_types
from audio_diffusion.inference.targets import nearest as nearest
from audio_diffusion.inference.targets import target_problems as target_problems
from audio_diffusion.networks.conditions import IN_EVERY_BATCH

_PACKAGE = Path(__file__).parents[1]
CHECKOUT = _PACKAGE.parents[1]  # of the repository, if the package is in its src/
INSTALLED = (_PACKAGE / "configs").is_dir()
CONFIG_DIR = (_PACKAGE if INSTALLED else CHECKOUT) / "configs"


def _fields_of(model: DictConfig) -> ListConfig:
    """Names of the fields that a model's conditions are read from, without those that every batch has."""
    conditions = model.get("conditions") or {}
    fields = [node.get("field") or name for name, node in conditions.items() if node is not None]
    return ListConfig([field for field in fields if field not in IN_EVERY_BATCH])


def _len_of(values: ListConfig | None) -> int | None:
    """Length of a list; None if it is not known yet, as that of the classes before the data are read."""
    return None if values is None else len(values)


def _x0_channels(representation: DictConfig, audio: DictConfig) -> int:
    """D, the number of channels of x0, which is that of the network."""
    plain = OmegaConf.to_container(representation, resolve=True)
    try:
        return build(plain, "representation").shape(audio.channels, audio.num_samples)[0]  # type: ignore[arg-type]
    except (ConfigError, ValueError):
        return audio.channels  # the error is reported when the representation itself is checked


def _positions(representation: DictConfig, num_samples: int, least: int) -> int:
    """Number of positions of x0 for a number of samples of audio, at least ``least``."""
    plain = OmegaConf.to_container(representation, resolve=True)
    try:
        return max(least, num_samples // build(plain, "representation").hop)  # type: ignore[arg-type]
    except ConfigError:
        return num_samples


OmegaConf.register_new_resolver("x0_channels", _x0_channels, replace=True)
OmegaConf.register_new_resolver("positions", _positions, replace=True)
OmegaConf.register_new_resolver("len", _len_of, replace=True)
OmegaConf.register_new_resolver("fields_of", _fields_of, replace=True)


@dataclass
class AudioFormat:
    """Form of the training audio: sample rate (Hz), channels C, length T of a crop in samples, and scale (1/RMS)."""

    sample_rate: int
    channels: int
    num_samples: int
    scale: float


@dataclass
class Config:
    """The root of ``configs/train.yaml``: its keys and their types. Groups hold ``_target_``s, checked by door 3."""

    name: str
    run_dir: str
    seed: int
    ckpt: str
    init: str | None
    init_weights: str
    check: bool
    max_steps: int
    batch_size: int
    val_every_steps: int | None
    log_every_steps: int
    classes: list[str] | None
    audio: AudioFormat
    data: dict[str, Any]
    model: dict[str, Any]
    representation: dict[str, Any]
    diffusion: dict[str, Any]
    sampler: dict[str, Any]
    training: dict[str, Any]
    callbacks: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any] | None = field(default=None)


_own_dir: Path | None = None  # the folder of ``config_dir``, of this process


def _groups() -> dict[str, list[str]]:
    """Config groups, including nested ones, and the names of the configs in each."""
    found: dict[str, list[str]] = {}
    for root in filter(None, (CONFIG_DIR, _own_dir)):
        for folder in (folder for folder in root.rglob("*") if folder.is_dir()):
            names = found.setdefault(folder.relative_to(root).as_posix(), [])
            names += sorted(f.stem for f in folder.glob("*.yaml"))
    return found


def _keys_at(path: str, config_name: str, chosen: list[str]) -> list[str]:
    """The option names at the level of the dotted ``path``, for the groups in ``chosen``."""
    parent = path.rpartition(".")[0]
    cfg = compose(config_name, overrides=chosen)
    node = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def _explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """Rewrites a Hydra error as a message that lists the available names."""
    chosen = [override for override in overrides if override.split("=")[0] in _groups()]
    text = str(error)
    cause = str(error.__cause__ or "")
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]+)'", text):
        return f"{match[1]}={match[2]}: there is no such config.{nearest(match[2], _groups().get(match[1], []))}"
    if (match := re.search(r"full_key: (\S+)", text + cause)) and match[1] in _groups():
        named = nearest("", _groups()[match[1]])
        return f"{match[1]}: none is chosen; choose one as well: {match[1]}=NAME.{named}"
    if match:
        return f"{match[1]}: there is no such option.{nearest(match[1], _keys_at(match[1], config_name, chosen))}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        if key in _groups():
            return f"{text.splitlines()[0]}{nearest(key, list(_groups()))}"
        return f"{key}: there is no such option.{nearest(key, _keys_at(key, config_name, chosen))}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read: {_one_line(error.message or text)}. Lists are written [a,b], mappings "
            "{a: b}, both in quotes for the shell; a word in them with signs such as = # ~ or ü has quotes of its own: "
            "'data.train=[\"a=b/x\"]'"
        )
    return text


def _one_line(text: str) -> str:
    """The first line of a message from Hydra."""
    return text.splitlines()[0].rstrip(".") if text else "Hydra does not say why"


#: root keys whose values are integers
_INTEGERS = ("seed", "max_steps", "batch_size", "val_every_steps", "log_every_steps")
#: optional config groups, by program
_MAY_BE_NONE = {
    "train": ("logger", "diffusion/weight"),
    "sample": ("sampler",),
    "evaluate": ("sampler",),
    "learnt": ("sampler",),
}


def _none_as_list(option: str, config_name: str) -> str:
    """Converts ``logger=null`` to Hydra's form, ``logger=[]``, for optional groups."""
    name, _, value = option.partition("=")
    return f"{name}=[]" if value in ("null", "None") and name in _MAY_BE_NONE.get(config_name, ()) else option


def _opened(options: list[str], config_name: str) -> list[str]:
    """Marks options that the program's YAML does not have as allowed, for Hydra: arguments of a user's own classes, and
    options of a sampler that is known once the model is loaded."""
    options = own_parts.open_for_arguments(options)
    has_own_sampler = "sampler" in _MAY_BE_NONE.get(config_name, ())
    return own_parts.open_for_own_sampler(options) if has_own_sampler else options


def _check_option(override: str, config_name: str) -> None:
    """Checks a single option, before all options are composed."""
    if override.startswith("+") or override.startswith("~"):
        key = override.lstrip("+~").split("=")[0]
        if key in command_line.ELSEWHERE:
            raise ConfigError(f"{override}: {command_line.ELSEWHERE[key]}")
        instead = (
            f"Write {key}=null to leave out what exists"
            if override.startswith("~")
            else f"Write {key}=VALUE for an option that exists"
        )
        raise ConfigError(
            f"{override}: options are neither added nor deleted on the command line, as a misspelt one would be "
            f"without effect. {instead}; new ones belong in a file in configs/"
        )
    name, given, value = override.partition("=")
    if not name or not given:
        raise ConfigError(f"{override}: expected OPTION=VALUE, such as max_steps=100")
    if name in command_line.ELSEWHERE:
        raise ConfigError(f"{override}: {command_line.ELSEWHERE[name]}")
    if name in _groups() and value in ("", "null", "None"):
        raise ConfigError(f"{override}: expected the name of a config.{nearest('', _groups()[name])}")
    if command_line.is_sweep(override):
        raise ConfigError(command_line.explain_sweep(override, config_name))


def _check_command_line(config_name: str, overrides: list[str]) -> DictConfig:
    """Door 1: composes the overrides as Hydra will, to explain its errors."""
    overrides = [_none_as_list(override, config_name) for override in overrides]
    for override in overrides:
        _check_option(override, config_name)
    overrides = _opened(overrides, config_name)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            return compose(config_name, overrides=[*overrides, *own_parts.search_path(_own_dir)])
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_explain(error, config_name, overrides)) from error


def _is_for_the_user(error: Exception) -> bool:
    """Whether an error is this project's message about a user's mistake; those of other libraries keep a traceback."""
    if isinstance(error, ConfigError):
        return True
    from audio_diffusion.data.remote import RemoteError  # not at the top: it imports network libraries

    if isinstance(error, RemoteError):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = Path(__file__).parents[1]
    is_ours = frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(package)
    return isinstance(error, ValueError) and is_ours


def refuse(error: Exception) -> NoReturn:
    """Prints the message and exits with status 2.

    A marker file informs slurm/train.sh, which may get the status of another rank.
    """
    print(f"error: {error}", file=sys.stderr)
    if stop_file := os.environ.get(STOP_FILE):
        Path(f"{stop_file}.refused").touch()
    raise SystemExit(2) from None


def entry(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turns ``main(cfg)`` into a program with ``configs/<config_name>.yaml``; see ``run``."""
    return lambda main: partial(run, config_name, main)


def run(
    config_name: str, main: Callable[[DictConfig], None], check: Callable[[DictConfig], None] | None = None
) -> None:
    """Calls ``main`` with the configuration of the command line; a user's mistake ends in a message and status 2.

    Args:
        config_name: the program's file in configs/.
        main: the program.
        check: raises ConfigError for invalid root options; it is called before anything else.
    """

    def guarded(cfg: DictConfig) -> None:
        sys.argv[:] = typed  # Lightning starts a process per device with this command
        try:
            own_parts.fit(cfg, options)
            main(cfg)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            if not _is_for_the_user(error):
                raise
            refuse(error)

    global _own_dir
    typed, options = list(sys.argv), list[str]()
    try:
        own_parts.make_importable()
        _own_dir, given = own_parts.split_config_dir(command_line.typed())
        arguments = [_none_as_list(a, config_name) for a in command_line.prepare(given, config_name)]
        options = command_line.without_flags(arguments)
        if not any(re.match("--?(config|c[pnd]|hydra-help|help|h)", argument) for argument in arguments):
            cfg = _check_command_line(config_name, options)
            if check is not None and len(options) == len(arguments):  # flags such as --cfg only print
                check(cfg)
        sys.argv[1:] = [*_opened(arguments, config_name), *own_parts.search_path(_own_dir)]
    except ConfigError as error:
        refuse(error)
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(guarded)()


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Returns the resolved configuration as dicts, lists, numbers and strings.

    Raises:
        ConfigError: for an interpolation that cannot be resolved or a missing value (``???``).
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        if isinstance(error, MissingMandatoryValue):
            raise ConfigError(f"{error.full_key}: must be given: {error.full_key}=VALUE") from error
        raise ConfigError(str(error).replace("\n", " ")) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _check_names(cfg: DictConfig) -> None:
    """Checks that a run's name is valid as that of a folder in runs/, and that its folder is not the current one."""
    if OmegaConf.is_missing(cfg, "name"):
        return
    for name in ("name", "run_dir"):
        value = None if OmegaConf.is_missing(cfg, name) else cfg[name]
        if value is not None and str(value).strip() in ("", "."):
            raise ConfigError(f"{name}: expected a name of this run's own, got {value!r}")
    if re.search(r"[/\\]", str(cfg.name)) or str(cfg.name).strip() == "..":
        raise ConfigError(
            f"name: expected the name of one folder in runs/, without / and \\ and not '..', got {cfg.name!r}; for "
            "another place write run_dir=FOLDER beside it"
        )


def _take_whole_floats(cfg: DictConfig) -> None:
    """Converts floats such as ``1e5``, as YAML reads it, to integers where integers are expected."""
    for node, names in ((cfg, _INTEGERS), (cfg.get("audio"), tuple(AudioFormat.__annotations__))):
        for name in names:
            if not isinstance(node, DictConfig) or OmegaConf.is_missing(node, name):
                continue
            value = node.get(name)
            if isinstance(value, float) and value.is_integer():
                node[name] = int(value)


def check_root(cfg: DictConfig) -> None:
    """Door 2: root keys and types.

    Raises:
        ConfigError: naming the key, the type expected and the value given.
    """
    _take_whole_floats(cfg)
    try:
        OmegaConf.merge(OmegaConf.structured(Config), cfg)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        expected = Config.__annotations__.get(str(key).split(".")[0])
        if str(key).startswith("audio."):
            expected = AudioFormat.__annotations__.get(str(key).split(".")[1])
        wanted = f"expected {getattr(expected, '__name__', expected)}: " if expected else ""
        given = OmegaConf.select(cfg, str(key)) if key in cfg or str(key).startswith("audio.") else None
        if isinstance(given, float) and not math.isfinite(given):
            raise ConfigError(f"{key}: expected a finite whole number, got {given}") from error
        raise ConfigError(f"{key}: {wanted}{str(error.args[0] if error.args else error).splitlines()[0]}") from error
    _check_names(cfg)
    for name in ("name", "run_dir", "ckpt", "init"):  # names of files, which may be numbers
        if not OmegaConf.is_missing(cfg, name) and isinstance(cfg[name], bool | int | float):
            cfg[name] = str(cfg[name])
    if cfg.ckpt == "anew":  # the name of ckpt=overwrite in 0.1
        cfg.ckpt = "overwrite"
    repeated = [label for label, count in Counter(cfg.classes or []).items() if count > 1]
    if repeated:
        raise ConfigError(f"classes: expected each class once, got {repeated[0]!r} more than once")
    for name in ("max_steps", "batch_size", "val_every_steps", "log_every_steps"):
        if cfg[name] is not None and cfg[name] < 1:
            raise ConfigError(f"{name}: expected at least 1, got {cfg[name]}")
    for name in cfg.audio:  # before the parts that copy these values under other names
        if not OmegaConf.is_missing(cfg.audio, name) and cfg.audio[name] < (0 if name == "scale" else 1):
            raise ConfigError(f"audio.{name}: expected at least 1, got {cfg.audio[name]}")
    if not 0 <= cfg.seed < 2**32:
        raise ConfigError(f"seed: expected a whole number from 0 to {2**32 - 1}, got {cfg.seed}")
