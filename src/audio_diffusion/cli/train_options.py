"""The root options of train.py: names and types (door 2), and checks of their values."""

import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audio_diffusion.cli.config import to_plain
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.inference.targets import ConfigError

#: root keys whose values are integers
_INTEGERS = ("seed", "max_steps", "batch_size", "val_every_steps", "log_every_steps")


@dataclass
class AudioFormat:
    """Format of the training audio: sample rate (Hz), channels C, length T of a crop in samples, and scale (1/RMS)."""

    sample_rate: int
    channels: int
    num_samples: int
    scale: float


@dataclass
class TrainOptions:
    """The root options of train.py: the keys of ``configs/train.yaml`` and their types.

    Groups are the nodes that parts are built from, with a ``_target_``, which door 3 checks.
    """

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
    guidance_scale: float
    classes: list[str] | None
    audio: AudioFormat
    data: dict[str, Any]
    model: dict[str, Any]
    representation: dict[str, Any]
    diffusion: dict[str, Any]
    sampler: dict[str, Any]
    training: dict[str, Any]
    embedding: dict[str, Any]
    callbacks: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any] | None = field(default=None)

    @classmethod
    def of(cls, cfg: DictConfig) -> "TrainOptions":
        """Reads a composed configuration.

        Raises:
            ConfigError: for an interpolation that cannot be resolved or a missing value.
        """
        plain = to_plain(cfg)
        return cls(**{**plain, "audio": AudioFormat(**plain["audio"])})

    def record(self) -> dict[str, Any]:
        """The options as plain data, as they are stored in the run's folder and its checkpoints."""
        return asdict(self)

    @property
    def accumulate(self) -> int:
        """Batches that are accumulated in an optimizer step."""
        return int(self.trainer["accumulate_grad_batches"])

    @property
    def last_step(self) -> int:
        """The step at which training ends; ``trainer=debug`` ends before ``max_steps``."""
        return int(self.trainer["max_steps"])

    @property
    def crop(self) -> CropFormat:
        """Format of the training crops."""
        return CropFormat(self.audio.sample_rate, self.audio.channels, self.audio.num_samples)


def _check_names(cfg: DictConfig) -> None:
    """Checks that a run's name is valid as that of a folder in runs/, and that its folder is not the current one."""
    if OmegaConf.is_missing(cfg, "name"):
        return
    for name in ("name", "run_dir"):
        value = None if OmegaConf.is_missing(cfg, name) else cfg[name]
        if value is not None and str(value).strip() in ("", "."):
            raise ConfigError(f"{name}: expected a name for this run, got {value!r}")
    if re.search(r"[/\\]", str(cfg.name)) or str(cfg.name).strip() == "..":
        raise ConfigError(
            f"name: expected the name of one folder in runs/, without / and \\ and not '..', got {cfg.name!r}; for "
            "another location add run_dir=FOLDER"
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
        OmegaConf.merge(OmegaConf.structured(TrainOptions), cfg)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        expected = TrainOptions.__annotations__.get(str(key).split(".")[0])
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
    for name in cfg.audio:  # checked before other parts copy these values under other names
        if not OmegaConf.is_missing(cfg.audio, name) and cfg.audio[name] < (0 if name == "scale" else 1):
            raise ConfigError(f"audio.{name}: expected at least 1, got {cfg.audio[name]}")
    if not 0 <= cfg.guidance_scale < math.inf:
        raise ConfigError(f"guidance_scale: expected a finite number, 0 or more, got {cfg.guidance_scale}")
    if not 0 <= cfg.seed < 2**32:
        raise ConfigError(f"seed: expected a whole number from 0 to {2**32 - 1}, got {cfg.seed}")
