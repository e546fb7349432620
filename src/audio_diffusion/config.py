"""Configuration: every bad one ends here, in one clear error.

Four doors, and nothing behind them checks again: (1) option names, by Hydra, with the nearest name added;
(2) root keys and types, by a strict merge into ``Config``; (3) each ``_target_``'s arguments against its signature, all
problems at once; (4) values, by constructors, which raise ``ValueError``.
"""

import difflib
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from audio_diffusion.data.remote import RemoteError
from audio_diffusion.signals import STOP_FILE

CONFIG_DIR = Path(__file__).parents[2] / "configs"

_IN_EVERY_BATCH = ("audio", "label", "seconds_start", "seconds_total")


def _fields_of(model: DictConfig) -> ListConfig:
    """What a model's conditions are read from, beyond what every batch has."""
    conditions = model.get("conditions") or {}
    fields = [node.get("field") or name for name, node in conditions.items() if node is not None]
    return ListConfig([field for field in fields if field not in _IN_EVERY_BATCH])


OmegaConf.register_new_resolver("len", len, replace=True)
OmegaConf.register_new_resolver("fields_of", _fields_of, replace=True)


_UNIONS, _NOTHING = (typing.Union, types.UnionType), types.NoneType


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


@dataclass
class AudioFormat:
    """What is trained on: Hz, channels C, and the crop's length T in samples."""

    sample_rate: int
    channels: int
    num_samples: int


@dataclass
class Config:
    """The root of ``configs/train.yaml``: its keys and their types. Groups hold ``_target_``s, checked by door 3."""

    name: str
    run_dir: str
    seed: int
    ckpt: str
    check: bool
    max_steps: int
    batch_size: int
    val_every_steps: int
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


def nearest(name: str, among: Iterator[str] | list[str]) -> str:
    """ " Did you mean …?" with the closest of the names, or the list of all of them."""
    names = sorted(set(among))
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There are: {', '.join(names)}." if names else ""


def _groups() -> dict[str, list[str]]:
    """Config groups, also groups in groups, and the names in each."""
    folders = (folder for folder in CONFIG_DIR.rglob("*") if folder.is_dir())
    return {
        folder.relative_to(CONFIG_DIR).as_posix(): sorted(f.stem for f in folder.glob("*.yaml")) for folder in folders
    }


def _keys_at(path: str, config_name: str) -> list[str]:
    """The option names beside the one at the dotted ``path``."""
    parent = path.rpartition(".")[0]
    cfg = compose(config_name)
    node = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def _explain(error: Exception, config_name: str) -> str:
    """A Hydra error as one that says what there is instead."""
    text = str(error)
    cause = str(error.__cause__ or "")
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]+)'", text):
        return f"{match[1]}={match[2]}: there is no such config.{nearest(match[2], _groups().get(match[1], []))}"
    if (match := re.search(r"full_key: (\S+)", text + cause)) and match[1] in _groups():
        return f"{match[1]}: none is chosen; choose one as well: {match[1]}=NAME.{nearest('', _groups()[match[1]])}"
    if match:
        return f"{match[1]}: there is no such option.{nearest(match[1], _keys_at(match[1], config_name))}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        if key in _groups():
            return f"{text.splitlines()[0]}{nearest(key, list(_groups()))}"
        return f"{key}: there is no such option.{nearest(key, _keys_at(key, config_name))}"
    if re.search(r"viable alternative|mismatched input|extraneous input|token recognition", text):
        return f"{text.splitlines()[0]}. Lists are written [a,b], mappings {{a: b}}, both in quotes for the shell"
    return text


def _check_command_line(config_name: str, overrides: list[str]) -> None:
    """Door 1: composes the overrides as Hydra will, to explain what it would refuse."""
    for override in overrides:
        if override.startswith("+") or override.startswith("~"):
            key = override.lstrip("+~").split("=")[0]
            raise ConfigError(
                f"{override}: options are neither added nor deleted on the command line, as a misspelt one would be "
                f"without effect. Write {key}=VALUE for an option that exists; new ones belong in a file in configs/"
            )
        name, given, value = override.partition("=")
        if not name or not given:
            raise ConfigError(f"{override}: expected OPTION=VALUE, such as max_steps=100")
        if name in _groups() and value in ("", "null", "None"):
            raise ConfigError(f"{override}: expected the name of a config.{nearest('', _groups()[name])}")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            compose(config_name, overrides=overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_explain(error, config_name)) from error


def _is_ours(error: Exception) -> bool:
    """Whether this project raised it, to tell the user of a mistake; those of other libraries keep their traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = Path(__file__).parent
    return isinstance(error, ConfigError | RemoteError) or (
        frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(package)
    )


def _refuse(error: Exception) -> NoReturn:
    """Ends with the message and status 2; tells slurm/train.sh, which may see another rank's status."""
    print(f"error: {error}", file=sys.stderr)
    if stop_file := os.environ.get(STOP_FILE):
        Path(f"{stop_file}.refused").touch()
    raise SystemExit(2) from None


def entry(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Makes ``main(cfg)`` a Hydra program on ``configs/<config_name>.yaml``; mistakes end in a message and status 2."""

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        def guarded(cfg: DictConfig) -> None:
            try:
                main(cfg)
            except (ValueError, RemoteError) as error:
                if not _is_ours(error):
                    raise
                _refuse(error)

        def run() -> None:
            arguments = sys.argv[1:]
            try:
                for dashed in (a for a in arguments if re.match(r"--?(?!config|package|info|experimental)[\w.]+=", a)):
                    raise ConfigError(f"{dashed}: options are written without dashes: {dashed.lstrip('-')}")
                if not any(argument.startswith("-") for argument in arguments):
                    _check_command_line(config_name, arguments)
            except ConfigError as error:
                _refuse(error)
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(guarded)()

        return run

    return decorate


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts, lists, numbers and strings.

    Raises:
        ConfigError: for an interpolation that leads nowhere or a value that is missing (``???``).
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        if isinstance(error, MissingMandatoryValue):
            raise ConfigError(f"{error.full_key}: must be given: {error.full_key}=VALUE") from error
        raise ConfigError(str(error).replace("\n", " ")) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def check_root(cfg: DictConfig) -> None:
    """Door 2: root keys and types.

    Raises:
        ConfigError: naming the key, the type expected and the value given.
    """
    try:
        OmegaConf.merge(OmegaConf.structured(Config), cfg)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        expected = Config.__annotations__.get(str(key).split(".")[0])
        if str(key).startswith("audio."):
            expected = AudioFormat.__annotations__.get(str(key).split(".")[1])
        wanted = f"expected {getattr(expected, '__name__', expected)}: " if expected else ""
        raise ConfigError(f"{key}: {wanted}{str(error.args[0] if error.args else error).splitlines()[0]}") from error
    for name in ("name", "run_dir"):
        if not OmegaConf.is_missing(cfg, "name") and cfg[name].strip() in ("", "."):
            raise ConfigError(f"{name}: expected a name of this run's own, got {cfg[name]!r}")
    for name in ("max_steps", "batch_size", "val_every_steps", "log_every_steps"):
        if cfg[name] < 1:
            raise ConfigError(f"{name}: expected at least 1, got {cfg[name]}")


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted path, node) of every node with a ``_target_``."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}".strip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def _type_problem(annotation: Any, value: Any) -> str | None:
    """What is wrong with a number, string, bool or list of them for an annotated argument; None where that cannot be
    said."""
    if not isinstance(value, (bool, int, float, str, list)) or annotation is inspect.Parameter.empty:
        return None
    allowed = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    lists = [kind for kind in allowed if typing.get_origin(kind) in (list, tuple, Sequence)]
    if isinstance(value, list):
        inner = [_type_problem(typing.get_args(lists[0])[0], item) for item in value] if len(lists) == 1 else []
        return next((problem for problem in inner if problem), None)
    for kind, open_to in (("a list", lists), ("a mapping, {name: value}", [kind for kind in allowed if kind is dict])):
        if open_to and set(allowed) <= {*open_to, _NOTHING}:
            return f"expected {kind}, got {value!r}"
    known = [kind for kind in allowed if kind in _PLAIN]
    open_to_more = any(kind is Any or typing.get_origin(kind) is typing.Literal for kind in allowed)
    if not known or open_to_more or (isinstance(value, str) and len(allowed) > len(known) and str in known):
        return None
    if any(isinstance(value, _PLAIN[kind]) and isinstance(value, bool) == (kind is bool) for kind in known):
        return None
    return f"expected {' or '.join(kind.__name__ for kind in known)}, got {value!r}"


def check_types(options: dict[str, Any], types: dict[str, Any]) -> None:
    """Door 2 of programs without a dataclass: the types of their own options.

    Raises:
        ConfigError: naming the option, the type expected and the value given.
    """
    for name, kind in types.items():
        if options[name] is None and _NOTHING not in typing.get_args(kind):
            raise ConfigError(f"{name}: expected {getattr(kind, '__name__', kind)}, got nothing (null)")
        if options[name] == "":
            raise ConfigError(f"{name}: expected a value, got nothing; leave it out, or give one")
        if problem := _type_problem(kind, options[name]):
            raise ConfigError(f"{name}: {problem}")


def _load(target: str) -> Any:
    """What a dotted ``_target_`` names.

    Raises:
        ConfigError: with the nearest name, if there is no such module or nothing of that name in it.
    """
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot import {module_name!r}: {error}") from error
    if not hasattr(module, name):
        raise ConfigError(f"{module_name} has no {name!r}.{nearest(name, dir(module))}")
    return getattr(module, name)


def _signature(target: Any) -> dict[str, inspect.Parameter]:
    """Arguments by name, annotations evaluated where they can be."""
    parameters = dict(inspect.signature(target).parameters)
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        hints = {}
    return {name: p.replace(annotation=hints.get(name, p.annotation)) for name, p in parameters.items()}


def target_problems(node: Any, path: str = "", given: tuple[str, ...] = ()) -> list[str]:
    """Door 3: every ``_target_`` that is not there, every argument its signature does not have, lacks or mistypes.

    Args:
        node: plain configuration.
        path: where it lies, for the messages.
        given: arguments that the program itself passes to the outermost targets.
    """
    problems = []
    for place, target in _targets(node, path):
        try:
            parameters = _signature(_load(target["_target_"]))
        except ConfigError as error:
            problems.append(f"{place}._target_: {error}")
            continue
        arguments = {key: value for key, value in target.items() if not key.startswith("_")}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key, value in arguments.items():
            if key not in parameters:
                if not open_ended:
                    hint = nearest(key, list(parameters))
                    problems.append(f"{place}.{key}: {target['_target_']} has no such argument.{hint}")
            elif problem := _type_problem(parameters[key].annotation, value):
                problems.append(f"{place}.{key}: {problem}")
        if not target.get("_partial_"):
            problems += [
                f"{place}.{name}: {target['_target_']} needs this argument"
                for name, p in parameters.items()
                if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
                and name not in arguments and not (place == path and name in given)
            ]  # fmt: skip
    return problems


def build(node: dict[str, Any], path: str, **given: Any) -> Any:
    """Makes the object a config node describes, ``given`` passed to it as well; values are checked by it (door 4).

    Raises:
        ConfigError: with the constructor's message and the node's place.
    """
    if problems := target_problems(node, path, tuple(given)):
        raise ConfigError("\n       ".join(problems))
    try:
        if given:  # passed on as they are, not as configuration
            return instantiate({**node, "_partial_": True}, _convert_="all")(**given)
        return instantiate(node, _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error
        inside = re.search(r"full_key: (\S+)", str(error))  # of a target within the target
        if isinstance(cause, (ValueError, TypeError)) or type(cause).__name__ == "MisconfigurationException":
            raise ConfigError(f"{path}.{inside[1]}.{cause}" if inside else f"{path}.{cause}") from error
        raise
