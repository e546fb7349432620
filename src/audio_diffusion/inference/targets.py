"""Builds the objects that config nodes describe, without Hydra; exported models are built by the same code.

A node is a dict with the dotted path of a class or function in ``_target_``, and the arguments as its other keys; with
``_partial_: true`` it describes the function itself with these arguments bound.
"""

import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

_UNIONS, _NOTHING = (typing.Union, types.UnionType), types.NoneType

#: current paths of targets by their paths in older versions; a path is that of a module, or of a name in a module
MOVED = {
    "audio_diffusion.models.conditions": "audio_diffusion.networks.conditions.condition",
    "audio_diffusion.models.diffwave": "audio_diffusion.networks.diffwave",
    "audio_diffusion.models.layers": "audio_diffusion.networks.layers",
    "audio_diffusion.models.mel": "audio_diffusion.networks.conditions.mel",
    "audio_diffusion.models.representations": "audio_diffusion.representations.waveform",
    "audio_diffusion.models.text": "audio_diffusion.networks.conditions.text",
    "audio_diffusion.models.unet1d": "audio_diffusion.networks.unet1d",
    "audio_diffusion.diffusion.samplers.ddim": "audio_diffusion.diffusion.solvers.ddim.ddim",
    "audio_diffusion.diffusion.samplers.ddpm": "audio_diffusion.diffusion.solvers.ddpm.ddpm",
    "audio_diffusion.diffusion.samplers.dpmpp": "audio_diffusion.diffusion.solvers.dpmpp.dpmpp",
    "audio_diffusion.diffusion.samplers.heun": "audio_diffusion.diffusion.solvers.heun.heun",
    "audio_diffusion.diffusion.samplers.unipc": "audio_diffusion.diffusion.solvers.unipc.unipc",
    "audio_diffusion.diffusion.schedules.Edm": "audio_diffusion.diffusion.schedules.VarianceExploding",
    "audio_diffusion.diffusion.parameterization.Edm": "audio_diffusion.diffusion.parameterization.EdmPreconditioning",
}

_DATA, _MODULE = "audio_diffusion.data.datamodule.AudioDataModule", "audio_diffusion.training.module.DiffusionModule"
_SAMPLING = "audio_diffusion.callbacks.sampling.SampleAudio"

#: renamed arguments by current target: {old: new}. A new name with a dot is an argument of a part, a
#: node of its own whose target is in ``PARTS``; None: the argument is gone
RENAMED: dict[str, dict[str, str | None]] = {
    "audio_diffusion.diffusion.schedules.lowered": {"num_steps": "prepended_steps"},
    _DATA: {
        **{name: f"crop.{name}" for name in ("sample_rate", "channels", "num_samples")},
        **{name: f"order.{name}" for name in ("seed", "shuffle_block", "weights", "temperature", "crops_per_clip")},
        **{name: f"reading.{name}" for name in ("classes", "fields", "audio_member", "convert", "pad", "augment")},
    },
    _MODULE: {name: f"loss.{name}" for name in ("cond_dropout", "mask_padding", "strata", "seed")},
    _SAMPLING: {"shape": None, "sample_rate": None, "guidance_scale": "guidance.scale", "clip": "guidance.clip"},
}

#: targets of the parts that ``RENAMED`` moves arguments to, by current target
PARTS = {
    _DATA: {
        "crop": "audio_diffusion.data.training_data.CropFormat",
        "order": "audio_diffusion.data.order.StreamOrder",
        "reading": "audio_diffusion.data.stream.Reading",
    },
    _MODULE: {"loss": "audio_diffusion.training.loss.TrainingLoss"},
    _SAMPLING: {"guidance": "audio_diffusion.diffusion.guidance.Guidance"},
}


class ConfigError(ValueError):
    """Raised for a configuration that cannot be used; the message explains what to change."""


def nearest(name: str, among: Iterator[str] | list[str]) -> str:
    """Returns " Did you mean …?" with the closest of the names, or a list of all of them if none is close."""
    names = sorted(set(among))
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" There are: {', '.join(names)}." if names else ""


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (dotted path, node) for every node with a ``_target_``."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}".strip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


def with_moved(config: dict[str, Any]) -> dict[str, Any]:
    """Copies a run's configuration that was read from a file, with present names for every ``_target_`` that has moved
    (``MOVED``) and every argument that has been renamed (``RENAMED``) since the file was written."""
    moved = _moved(config)
    if (
        "callbacks" in moved and "guidance_scale" not in moved
    ):  # older versions had this option only at callbacks.sampling
        moved["guidance_scale"] = (config["callbacks"].get("sampling") or {}).get("guidance_scale", 1.0)
    return moved


def _moved(node: Any) -> Any:
    """Copies a node of a configuration with current names."""
    if isinstance(node, list):
        return [_moved(value) for value in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value) for key, value in node.items()}
    if not isinstance(target := moved.get("_target_"), str):
        return moved
    module, _, name = target.rpartition(".")
    target = MOVED.get(target) or f"{MOVED.get(module, module)}.{name}"
    renamed, result = RENAMED.get(target, {}), dict[str, Any](_target_=target)
    for key, value in moved.items():
        new = renamed.get(key, key)
        part, _, name = (new or "").rpartition(".")
        if part:
            result.setdefault(part, {"_target_": PARTS[target][part]})[name] = value
        elif new and key != "_target_":
            result[new] = value
    return result


def renamed_hint(place: str, target: str, key: str) -> str:
    """Returns " It is called .. now.", if a target's argument has been renamed; else nothing."""
    new = RENAMED.get(target, {}).get(key)
    return f" It is called {place}.{new} now." if new else ""


_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def _type_problem(annotation: Any, value: Any) -> str | None:
    """Describes the type error of a number, string, bool or list of them for an annotated argument; None if there is
    none, or if the annotation does not determine it."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, got {value}"
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


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def check_types(options: dict[str, Any], types: dict[str, Any]) -> None:
    """Checks the types of the root options of programs without a dataclass (door 2 of ``cli.config``).

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


def load_object(target: str) -> Any:
    """Imports the object that a dotted ``_target_`` names.

    Raises:
        ConfigError: if the module cannot be imported or has no such member; the message has the nearest name.
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
    """Returns the parameters of a target by name, with annotations evaluated where possible."""
    parameters = dict(inspect.signature(target).parameters)
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        hints = {}
    return {name: p.replace(annotation=hints.get(name, p.annotation)) for name, p in parameters.items()}


def arguments_of(target: str) -> set[str]:
    """Returns the names of a target's arguments.

    Raises:
        ConfigError: if it cannot be imported.
    """
    return set(_signature(load_object(target)))


def target_problems(node: Any, path: str = "", given: tuple[str, ...] = ()) -> list[str]:
    """Lists missing targets, and unknown, missing or mistyped arguments of targets (door 3 of ``cli.config``).

    Args:
        node: plain configuration.
        path: dotted path of the node, for the messages.
        given: arguments that the program itself passes to the outermost target.
    """
    problems = []
    for place, target in _targets(node, path):
        try:
            parameters = _signature(load_object(target["_target_"]))
        except ConfigError as error:
            problems.append(f"{place}._target_: {error}")
            continue
        arguments = {key: value for key, value in target.items() if not key.startswith("_")}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key, value in arguments.items():
            if key not in parameters:
                if not open_ended:
                    hint = renamed_hint(place, target["_target_"], key) or nearest(key, list(parameters))
                    problems.append(f"{place}.{key}: {target['_target_']} has no such argument.{hint}")
            elif _is_infinite(parameters[key].default) and _is_infinite(value):
                continue  # an infinite default means "no bound"
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


def _make(node: Any, path: str, given: dict[str, Any]) -> Any:
    """Builds a node's object, and those inside lists and dicts. ``given`` overrides the outermost node's arguments."""
    if isinstance(node, list):
        return [_make(value, f"{path}[{i}]", {}) for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {k: _make(v, f"{path}.{k}", {}) for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    target, arguments = load_object(node["_target_"]), {**arguments, **given}
    if node.get("_partial_"):
        return partial(target, **arguments)
    try:
        return target(**arguments)
    except Exception as error:
        if isinstance(error, ValueError | TypeError) or type(error).__name__ == "MisconfigurationException":
            raise ConfigError(f"{path}.{error}") from error  # MisconfigurationException is Lightning's
        raise


def build(node: dict[str, Any], path: str, **given: Any) -> Any:
    """Builds the object that a config node describes, with the additional arguments ``given``.

    Its constructor checks the values (door 4 of ``cli.config``).

    Raises:
        ConfigError: with the constructor's message and the node's path.
    """
    if problems := target_problems(node, path, tuple(given)):
        raise ConfigError("\n       ".join(problems))
    return _make(node, path, given)
