"""Descriptions of training data: the format of a crop, and the shards."""

from dataclasses import dataclass
from typing import Any

from audio_diffusion.diffusion.checks import check_at_least_one


@dataclass(frozen=True)
class CropFormat:
    """Format of a crop, ``[channels, num_samples]``.

    Args:
        sample_rate: Hz.
        channels: number of channels C.
        num_samples: length T of a crop in samples.

    Raises:
        ValueError: if one of them is below 1.
    """

    sample_rate: int
    channels: int
    num_samples: int

    def __post_init__(self) -> None:
        check_at_least_one(sample_rate=self.sample_rate, channels=self.channels, num_samples=self.num_samples)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a crop, (C, T)."""
        return self.channels, self.num_samples


@dataclass(frozen=True)
class TrainingData:
    """The shards that a model was trained on, as its checkpoint stores them; secrets may be redacted.

    Args:
        train: pattern of the training shards, or patterns by name.
        val: pattern of the held-out shards; None for the val-*.tar beside the training shards.
        fields: names of the additional fields read from each clip.
        audio_member: ending of the member that is a clip's audio; None if clips have only one.
        storage_options: options of the store's filesystems, by scheme.
    """

    train: str | dict[str, str]
    val: str | dict[str, str] | None = None
    fields: tuple[str, ...] = ()
    audio_member: str | None = None
    storage_options: dict[str, Any] | None = None
