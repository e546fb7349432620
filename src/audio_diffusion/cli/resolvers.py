"""Interpolations that the YAMLs in configs/ use, such as ``${x0_channels:${representation},${audio}}``."""

from omegaconf import DictConfig, ListConfig, OmegaConf

from audio_diffusion.inference.targets import ConfigError, build
from audio_diffusion.networks.conditions import IN_EVERY_BATCH


def _fields_of(model: DictConfig) -> ListConfig:
    """Returns the fields that a model's conditions are read from, without those in every batch."""
    conditions = model.get("conditions") or {}
    fields = [node.get("field") or name for name, node in conditions.items() if node is not None]
    return ListConfig([field for field in fields if field not in IN_EVERY_BATCH])


def _len_of(values: ListConfig | None) -> int | None:
    """Returns the length of a list; None if it is not yet known, like that of the classes before data are read."""
    return None if values is None else len(values)


def _x0_channels(representation: DictConfig, audio: DictConfig) -> int:
    """Returns D, the number of channels of x0 and of the network."""
    plain = OmegaConf.to_container(representation, resolve=True)
    try:
        return build(plain, "representation").shape(audio.channels, audio.num_samples)[0]  # type: ignore[arg-type]
    except (ConfigError, ValueError):
        return audio.channels  # the error is reported when the representation itself is checked


def _positions(representation: DictConfig, num_samples: int, least: int) -> int:
    """Returns the number of positions of x0 for ``num_samples`` of audio, at least ``least``."""
    plain = OmegaConf.to_container(representation, resolve=True)
    try:
        return max(least, num_samples // build(plain, "representation").hop)  # type: ignore[arg-type]
    except ConfigError:
        return num_samples


def register() -> None:
    """Registers them with OmegaConf."""
    OmegaConf.register_new_resolver("x0_channels", _x0_channels, replace=True)
    OmegaConf.register_new_resolver("positions", _positions, replace=True)
    OmegaConf.register_new_resolver("len", _len_of, replace=True)
    OmegaConf.register_new_resolver("fields_of", _fields_of, replace=True)
