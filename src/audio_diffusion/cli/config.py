"""Composes and explains configurations.

There are four checks ("doors"), which are not repeated elsewhere: (1) option names, by Hydra, with the nearest name
added (here); (2) root keys and types, by the dataclass of the program (``cli.options``, ``cli.train_options``); (3)
each ``_target_``'s arguments against its signature, all problems at once; (4) values, by constructors, which raise
``ValueError``.
"""

import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from audio_diffusion.cli import command_line, own_parts, resolvers
from audio_diffusion.inference.targets import RENAMED
from audio_diffusion.inference.targets import ConfigError as ConfigError
from audio_diffusion.inference.targets import build as build
from audio_diffusion.inference.targets import nearest as nearest
from audio_diffusion.inference.targets import target_problems as target_problems

_PACKAGE = Path(__file__).parents[1]
CHECKOUT = _PACKAGE.parents[1]  # root of the repository, if the package is in its src/
INSTALLED = (_PACKAGE / "configs").is_dir()
CONFIG_DIR = (_PACKAGE if INSTALLED else CHECKOUT) / "configs"


resolvers.register()


def _groups() -> dict[str, list[str]]:
    """Returns the config groups, including nested ones, and the names of the configs in each."""
    found: dict[str, list[str]] = {}
    for root in filter(None, (CONFIG_DIR, own_parts.config_dir())):
        for folder in (folder for folder in root.rglob("*") if folder.is_dir()):
            names = found.setdefault(folder.relative_to(root).as_posix(), [])
            names += sorted(f.stem for f in folder.glob("*.yaml"))
    return found


def _keys_at(path: str, config_name: str, chosen: list[str]) -> list[str]:
    """Returns the option names at the level of the dotted ``path``, for the groups in ``chosen``."""
    parent = path.rpartition(".")[0]
    cfg = compose(config_name, overrides=chosen)
    node = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


#: targets in train.yaml whose arguments have been renamed, by place
_RENAMED_AT = {
    "data": "audio_diffusion.data.datamodule.AudioDataModule",
    "training": "audio_diffusion.training.module.DiffusionModule",
    "callbacks.sampling": "audio_diffusion.callbacks.sampling.SampleAudio",
}


def _renamed(key: str, overrides: list[str]) -> str:
    """Returns the message for an option that has another name now; nothing for any other option."""
    for option in overrides:
        name, _, value = option.partition("=")
        for place, target in _RENAMED_AT.items():
            old, _, rest = name.removeprefix(f"{place}.").partition(".")
            new = RENAMED[target].get(old) if name.startswith(f"{place}.") else None
            if new and f"{name}.".startswith(f"{key}."):
                return f"{name}: write {place}.{new}{'.' * bool(rest)}{rest}={value}"
    return ""


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
        if renamed := _renamed(match[1], overrides):
            return renamed
        return f"{match[1]}: there is no such option.{nearest(match[1], _keys_at(match[1], config_name, chosen))}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        if renamed := _renamed(key, overrides):
            return renamed
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
    """Returns the first line of a message from Hydra."""
    return text.splitlines()[0].rstrip(".") if text else "Hydra does not say why"


#: optional config groups, by program
_MAY_BE_NONE = {
    "train": ("logger", "diffusion/weight"),
    "sample": ("sampler",),
    "evaluate": ("sampler",),
    "learnt": ("sampler",),
}


def none_as_list(option: str, config_name: str) -> str:
    """Converts ``logger=null`` to Hydra's form, ``logger=[]``, for optional groups."""
    name, _, value = option.partition("=")
    return f"{name}=[]" if value in ("null", "None") and name in _MAY_BE_NONE.get(config_name, ()) else option


def opened(options: list[str], config_name: str) -> list[str]:
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
    if value in ("", "null", "None") and name in _groups():
        raise ConfigError(f"{override}: expected the name of a config.{nearest('', _groups()[name])}")
    if command_line.is_sweep(override):
        raise ConfigError(command_line.explain_sweep(override, config_name))


def read_command_line(config_name: str, options: list[str]) -> tuple[DictConfig, DictConfig]:
    """Door 1: composes the configuration of the command line; returns it, and Hydra's own node.

    Raises:
        ConfigError: for an option or a choice that does not exist, with the nearest name.
    """
    options = [none_as_list(option, config_name) for option in options]
    for option in options:
        _check_option(option, config_name)
    options = opened(options, config_name)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            cfg = compose(config_name, overrides=[*options, *own_parts.search_path()], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_explain(error, config_name, options)) from error
    node = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, node


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
