"""The batch that the data module passes to training."""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: a condition of B samples: numbers as a tensor [B, ...], words as a tuple of B
Field = Tensor | tuple[str, ...]


#: kinds of faults, and what each means
KINDS = {
    "format": "no audio that can be decoded",
    "empty": "no samples",
    "corrupt": "does not decode, or fails its checksum",
    "truncated": "cut off, in the file or in the shard",
    "samples": "NaN, infinite or absurdly loud samples",
    "rate": "an impossible sample rate",
    "channels": "no rule to make the wanted number of channels",
    "metadata": "json or fields missing or unreadable",
    "label": "a label that is none of the classes",
    "duplicate": "a second member of the same name",
    "unsafe": "a link, a special member, or a name that leads out of the shard",
    "missing": "not in the shard, though the manifest tells of it",
    "read": "the file system failed",
    "remote": "the server failed, after retries",
    "short": "shorter than a crop, and pad is off",
    "other_rate": "another sample rate, and convert is off",
    "other_channels": "another number of channels, and convert is off",
}
BY_RULE = ("short", "other_rate", "other_channels")  # left out because the configuration says so


class Skipped(NamedTuple):
    """A clip that could not be used: the shard's path, the clip's key, the kind of fault, and the reason in words."""

    shard: str
    key: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"clip {self.key!r} of {self.shard}: {self.reason}"


class Crop(NamedTuple):
    """The properties of one crop without its audio; ``num_valid`` is 0 if there is no clip."""

    position: int  # in the endless stream
    source: int = -1  # number of the data set in the mixture; -1: an empty slot
    key: str = ""
    num_valid: int = 0  # samples that are the clip's own, the rest is padding
    seconds_start: float = np.nan  # of the crop in its clip
    seconds_total: float = np.nan  # of the clip
    label: int = -1  # -1: none
    fields: tuple[str | np.ndarray, ...] = ()
    skipped: Skipped | None = None


@dataclass(frozen=True)
class AudioBatch:
    """A batch of B crops.

    The slot of an unusable clip is silent and has ``valid`` False, so that batches keep their size and a bad clip does
    not affect the others.
    """

    audio: Tensor  # float32 [B, C, T], full scale ±1
    num_valid: Tensor  # int64 [B], samples that are the clip's own; the rest is padding
    label: Tensor | None  # int64 [B], -1 for "none"; None for data without classes
    seconds_start: Tensor  # float32 [B], of the crop in its clip; NaN where there is no clip
    seconds_total: Tensor  # float32 [B], of the clip
    fields: dict[str, Field]  # the fields named by the data's option `fields`
    positions: tuple[int, ...]  # of each clip in the endless stream
    sources: tuple[int, ...]  # of each clip: number of the data set in the mixture; -1 where there is no clip
    keys: tuple[str, ...]  # of each clip
    skipped: tuple[Skipped, ...]  # clips of this batch that could not be used

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def valid(self) -> Tensor:
        """bool ``[B]``, False where there is no clip."""
        return self.num_valid > 0

    @property
    def mask(self) -> Tensor:
        """bool ``[B, 1, T]``, False on padding."""
        return (torch.arange(self.audio.shape[-1], device=self.audio.device) < self.num_valid[:, None])[:, None]

    @property
    def cond(self) -> dict[str, Field]:
        """The conditions by name, as networks take them."""
        label = {} if self.label is None else {"label": self.label}
        seconds = {"seconds_start": self.seconds_start, "seconds_total": self.seconds_total}
        return {**label, **seconds, **self.fields}

    def _map(self, change) -> "AudioBatch":  # type: ignore[no-untyped-def]
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: change(x) for name, x in own.items() if isinstance(x, Tensor)}
        inner = {name: change(x) if isinstance(x, Tensor) else x for name, x in self.fields.items()}
        return replace(self, **changed, fields=inner)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AudioBatch":
        """The batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "AudioBatch":
        """The batch in page-locked memory; called by the DataLoader."""
        return self._map(lambda tensor: tensor.pin_memory())


def _field(name: str, values: list[str | np.ndarray | None]) -> Field:
    """One field of B clips; None where a clip is missing: "" or NaN.

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


@dataclass(frozen=True)
class BatchSplit:
    """How the clips of an optimizer step are divided: the same number for each device and accumulated batch.

    Raises:
        ValueError: if this is not possible, naming the nearest valid sizes.
    """

    batch_size: int
    nodes: int
    devices: int  # of each node
    accumulate: int  # batches of each device

    def __post_init__(self) -> None:
        parts = self.nodes * self.devices * self.accumulate
        if self.batch_size % parts:
            below = self.batch_size // parts * parts
            nearest = f"{below} or {below + parts}" if below else str(parts)
            raise ValueError(
                f"batch_size: expected a multiple of {parts} ({self._parts()} × {self.accumulate} accumulated), "
                f"got {self.batch_size}; the nearest that works: {nearest}"
            )

    @property
    def clips(self) -> int:
        """Number of clips in one batch of one device."""
        return self.batch_size // (self.nodes * self.devices * self.accumulate)

    def _parts(self) -> str:
        return f"{counted(self.nodes, 'node')} × {counted(self.devices, 'device')}"

    def __str__(self) -> str:
        clips = counted(self.clips, "clip")
        return f"batch: {self.batch_size} = {self._parts()} × {clips} × {self.accumulate} accumulated"


def counted(number: int, what: str) -> str:
    """Formats a number of things: ``1 clip``, ``2 clips``."""
    return f"{number} {what}{'s' * (number != 1)}"
