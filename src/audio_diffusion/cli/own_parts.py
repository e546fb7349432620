"""Supports parts from a user's own package (``model._target_=my_package.MyNet``) and YAMLs in a user's own folder."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from audio_diffusion.inference.targets import ConfigError, arguments_of

_TARGET, _DIR = "._target_", "config_dir="

_config_dir: Path | None = None  # the folder of this process


def make_importable() -> None:
    """Makes packages in the current folder importable, as with ``python -m``; installed packages take precedence."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def config_dir() -> Path | None:
    """Returns the folder of ``config_dir=FOLDER``, whose groups are added to the project's."""
    return _config_dir


def take_config_dir(options: Sequence[str]) -> list[str]:
    """Stores ``config_dir=FOLDER`` for this process; returns the other options."""
    global _config_dir
    _config_dir, rest = split_config_dir(options)
    return rest


def split_config_dir(options: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Separates the folder of ``config_dir=FOLDER`` from the other options.

    Raises:
        ConfigError: if the folder does not exist, or contains no group.
    """
    folders = [option.removeprefix(_DIR).strip("'\"") for option in options if option.startswith(_DIR)]
    rest = [option for option in options if not option.startswith(_DIR)]
    if not folders:
        return None, rest
    folder = Path(folders[-1]).expanduser().resolve()
    if not folder.is_dir() or not list(folder.glob("*/*.yaml")):
        raise ConfigError(
            f"config_dir: expected a folder with a YAML in the folder of its group, such as "
            f"{folders[-1]}/model/my_net.yaml for model=my_net, got {folders[-1]!r}"
        )
    return folder, rest


def search_path() -> list[str]:
    """Returns Hydra's option that adds the folder of ``config_dir`` to the config search path."""
    return [] if _config_dir is None else [f"hydra.searchpath=['file://{_config_dir}']"]


def targets_in(options: Sequence[str]) -> dict[str, str]:
    """Returns the classes chosen by options ``PLACE._target_=CLASS``, by place."""
    pairs = (option.partition("=") for option in options)
    return {name.removesuffix(_TARGET): value for name, _, value in pairs if name.endswith(_TARGET)}


def open_for_arguments(options: Sequence[str]) -> list[str]:
    """Marks the arguments of chosen classes for Hydra as options that the YAML may lack."""
    places = targets_in(options)
    return [f"++{o}" if o.partition("=")[0].rpartition(".")[0] in places else o for o in options]


def open_for_own_sampler(options: Sequence[str]) -> list[str]:
    """Marks options of a sampler for Hydra as those of the run's own one, unless ``sampler=`` chooses another."""
    chosen = [option for option in options if option.startswith("sampler=") and option != "sampler=[]"]
    if chosen or "sampler" in targets_in(options):
        return list(options)
    return [
        re.sub(r"^sampler/grid=", "+sampler/grid@sampler.grid=", re.sub(r"^sampler\.", "++sampler.", o))
        for o in options
    ]


def sampler_of(own: dict[str, Any], given: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the config node of the sampler to use.

    Args:
        own: node of the sampler that the model was trained with.
        given: node of the sampler on the command line: another sampler or, without a ``_target_``, options of the
            model's own sampler; None if there are none.
    """
    if not given or "_target_" in given:
        return given or own
    node = {**own, **given}
    if isinstance(grid := given.get("grid"), dict) and "_target_" not in grid and isinstance(own.get("grid"), dict):
        node["grid"] = {**own["grid"], **grid}
    return node


def fit(cfg: DictConfig, options: Sequence[str]) -> None:
    """Adapts the arguments in a group's YAML to the class that the user has chosen instead of the YAML's own.

    Arguments that neither the user gave nor the class takes are removed. Common ones, such as ``channels`` and
    ``conditions`` of networks, thus remain if the class takes them. Conditions that are not empty always remain.

    Raises:
        ConfigError: if a class cannot be imported.
    """
    for place, target in targets_in(options).items():
        node = OmegaConf.select(cfg, place)
        if not isinstance(node, DictConfig):
            continue
        given = {option.partition("=")[0].rpartition(".")[2] for option in options if option.startswith(f"{place}.")}
        try:
            taken = arguments_of(target.strip("'\""))
        except ConfigError as error:
            raise ConfigError(f"{place}{_TARGET}: {error}") from error
        with open_dict(node):
            for name in [str(name) for name in node]:
                is_condition = name == "conditions" and isinstance(node.get(name), DictConfig | ListConfig)
                if name.startswith("_") or name in given or name in taken or (is_condition and node.get(name)):
                    continue
                del node[name]
