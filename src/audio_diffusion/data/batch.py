"""The batch that the data module passes to training."""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from audio_diffusion.data.faults import Skipped

#: a condition for B samples: numbers as a tensor [B, ...], text as a tuple of B strings
Field = Tensor | tuple[str, ...]


class Crop(NamedTuple):
    """The properties of one crop without its audio; ``num_valid`` is 0 if there is no clip."""

    position: int  # position in the endless stream
    source: int = -1  # index of the data set in the mixture; -1 for an empty slot
    key: str = ""
    num_valid: int = 0  # number of samples from the clip; the rest is padding
    seconds_start: float = np.nan  # start of the crop in its clip
    seconds_total: float = np.nan  # duration of the clip
    label: int = -1  # index of the class; -1 for none
    fields: tuple[str | np.ndarray, ...] = ()
    skipped: Skipped | None = None


@dataclass(frozen=True)
class AudioBatch:
    """A batch of B crops.

    The slot of an unusable clip is silent and has ``valid`` False, so that batches keep their size and a bad clip does
    not affect the others.
    """

    audio: Tensor  # float32 [B, C, T], full scale ±1
    num_valid: Tensor  # int64 [B], number of samples from the clip; the rest is padding
    label: Tensor | None  # int64 [B], -1 for "none"; None for data without classes
    seconds_start: Tensor  # float32 [B], start of the crop in its clip; NaN if there is no clip
    seconds_total: Tensor  # float32 [B], duration of the clip
    fields: dict[str, Field]  # the fields named by the data's option `fields`
    positions: tuple[int, ...]  # position of each clip in the endless stream
    sources: tuple[int, ...]  # index of each clip's data set in the mixture; -1 if there is no clip
    keys: tuple[str, ...]  # key of each clip
    skipped: tuple[Skipped, ...]  # clips of this batch that could not be used

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def valid(self) -> Tensor:
        """Which slots have a clip, bool ``[B]``."""
        return self.num_valid > 0

    @property
    def mask(self) -> Tensor:
        """Which samples are not padding, bool ``[B, 1, T]``."""
        return (torch.arange(self.audio.shape[-1], device=self.audio.device) < self.num_valid[:, None])[:, None]

    @property
    def cond(self) -> dict[str, Field]:
        """The conditions by name, as networks expect them."""
        label = {} if self.label is None else {"label": self.label}
        seconds = {"seconds_start": self.seconds_start, "seconds_total": self.seconds_total}
        return {**label, **seconds, **self.fields}

    @property
    def texts(self) -> tuple[str, ...]:
        """The first text field, such as captions; empty if there is none."""
        return next((values for values in self.fields.values() if isinstance(values, tuple)), ())

    def _map(self, change) -> "AudioBatch":  # type: ignore[no-untyped-def]
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: change(x) for name, x in own.items() if isinstance(x, Tensor)}
        inner = {name: change(x) if isinstance(x, Tensor) else x for name, x in self.fields.items()}
        return replace(self, **changed, fields=inner)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AudioBatch":
        """Returns the batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "AudioBatch":
        """Returns the batch in page-locked memory; called by the DataLoader."""
        return self._map(lambda tensor: tensor.pin_memory())


def _field(name: str, values: list[str | np.ndarray | None]) -> Field:
    """Combines one field of B clips; a missing clip has "" or NaN.

    Raises:
        ValueError: if the clips' arrays differ in shape.
    """
    given = [value for value in values if value is not None]
    if not given or isinstance(given[0], str):
        return tuple("" if value is None else str(value) for value in values)
    if len({np.shape(value) for value in given}) > 1:
        shapes = sorted({str(np.shape(value)) for value in given})
        raise ValueError(f"fields: expected {name} to have one shape in all clips, got {' and '.join(shapes)}")
    empty = np.full_like(given[0], np.nan)
    return torch.from_numpy(np.stack([empty if value is None else value for value in values]))


def collate(audio: Tensor, clips: list[Crop], with_label: bool, field_names: tuple[str, ...] = ()) -> AudioBatch:
    """Combines crops ``[B, C, T]`` and their properties into a batch, without labels if ``with_label`` is False."""
    columns = [[clip.fields[i] if clip.fields else None for clip in clips] for i in range(len(field_names))]
    return AudioBatch(
        audio=audio,
        num_valid=torch.tensor([clip.num_valid for clip in clips]),
        label=torch.tensor([clip.label for clip in clips]) if with_label else None,
        seconds_start=torch.tensor([clip.seconds_start for clip in clips], dtype=torch.float32),
        seconds_total=torch.tensor([clip.seconds_total for clip in clips], dtype=torch.float32),
        fields={name: _field(name, values) for name, values in zip(field_names, columns, strict=True)},
        positions=tuple(clip.position for clip in clips),
        sources=tuple(clip.source for clip in clips),
        keys=tuple(clip.key for clip in clips),
        skipped=tuple(clip.skipped for clip in clips if clip.skipped is not None),
    )
