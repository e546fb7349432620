"""What the data gives to training: one small typed object."""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Skipped(NamedTuple):
    """A clip that could not be used: the shard's path, the clip's key, the kind of fault, and the reason in words."""

    shard: str
    key: str
    kind: str
    reason: str


class Clip(NamedTuple):
    """One crop on its way into a batch; ``audio`` is None where the clip was skipped or there is none."""

    position: int
    key: str
    audio: Tensor | None  # [C, T]
    num_valid: int  # samples that are the clip's own, the rest is padding
    label: int  # -1: none
    skipped: Skipped | None = None


@dataclass(frozen=True)
class AudioBatch:
    """B crops. A slot whose clip could not be used is silent and has ``valid`` False, so that batches never
    change in size and a bad clip never changes what the others get."""

    audio: Tensor  # float32 [B, C, T], full scale ±1
    mask: Tensor  # bool [B, 1, T], False on padding
    valid: Tensor  # bool [B], False where there is no clip
    label: Tensor | None  # int64 [B], -1 for "none"; None for data without classes
    positions: tuple[int, ...]  # of each clip in the endless stream
    keys: tuple[str, ...]  # of each clip
    skipped: tuple[Skipped, ...]  # clips of this batch that could not be used

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def cond(self) -> dict[str, Tensor]:
        """The conditions by name, as networks take them."""
        return {} if self.label is None else {"label": self.label}

    def _map(self, change) -> "AudioBatch":  # type: ignore[no-untyped-def]
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(x) for name, x in tensors.items() if isinstance(x, Tensor)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AudioBatch":
        """The batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "AudioBatch":
        """The batch in page-locked memory; called by the DataLoader."""
        return self._map(lambda tensor: tensor.pin_memory())


def collate(clips: list[Clip], channels: int, num_samples: int, with_label: bool) -> AudioBatch:
    """Clips -> batch; ``with_label`` False makes a batch without labels."""
    audio = torch.zeros(len(clips), channels, num_samples)
    num_valid = torch.zeros(len(clips), dtype=torch.int64)
    for slot, clip in enumerate(clips):
        if clip.audio is not None:
            audio[slot] = clip.audio
            num_valid[slot] = clip.num_valid
    return AudioBatch(
        audio=audio,
        mask=(torch.arange(num_samples) < num_valid[:, None])[:, None],
        valid=torch.tensor([clip.audio is not None for clip in clips]),
        label=torch.tensor([clip.label for clip in clips]) if with_label else None,
        positions=tuple(clip.position for clip in clips),
        keys=tuple(clip.key for clip in clips),
        skipped=tuple(clip.skipped for clip in clips if clip.skipped is not None),
    )
