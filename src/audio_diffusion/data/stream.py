"""Reads the crop at a position of the stream, and batches at several; the same position always gives the same crop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from audio_diffusion.data.audio.reading import UnusableAudio, read_crop
from audio_diffusion.data.batch import AudioBatch, Crop, collate
from audio_diffusion.data.faults import Skipped
from audio_diffusion.data.order import ClipOrder, Mixture
from audio_diffusion.data.remote import RemoteError
from audio_diffusion.data.shards.members import READERS
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.shared_memory import Parcel, SharedSlots
from audio_diffusion.data.transforms import Augment
from audio_diffusion.diffusion.seeding import seed_of


@dataclass(frozen=True)
class Reading:
    """Options of reading a clip: its label and fields, its audio, and whether it is used.

    Args:
        classes: class names, in the order of the network's labels; empty ignores labels. A clip's label is read from
            its json, else from its ``.cls`` member, which may be an index into this list. A clip with any other label
            is skipped; null means "not given".
        fields: additional fields of each clip: keys of its json (``caption``), or endings of members (``text.npy``). A
            clip that lacks one is skipped.
        audio_member: ending of the member that is a clip's audio (``flac``, ``vocals.wav``), for shards of other tools
            in which clips have several; None if clips have only one.
        convert: whether to resample and map channels; if False, clips of another sample rate or number of channels are
            skipped.
        pad: whether to pad clips shorter than the crop with silence, which the batch's mask shows; if False, they are
            skipped.
        augment: augmentation of each training crop (gain, polarity, channels), with its own seed; None for none.
    """

    classes: Sequence[str] = ()
    fields: Sequence[str] = ()
    audio_member: str | None = None
    convert: bool = True
    pad: bool = True
    augment: Augment | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "fields", tuple(self.fields))
        object.__setattr__(self, "audio_member", self.audio_member.lstrip(".") if self.audio_member else None)


class ClipReader:
    """Reads the crop at a position: finds, decodes, crops and labels one clip.

    Args:
        sources: the data sets.
        mixture: maps positions to clips; it counts each clip ``crops_per_clip`` times.
        sample_rate: sample rate of the crop, Hz.
        reading: options of reading a clip.
        seed: seed of the positions of crops in their clips; None reads the start of each clip.
        last: positions from here on are empty slots, which fill the last batch of a pass; None for an endless stream.
        crops_per_clip: number of crops of each clip in an epoch, each from a different part of the clip.
    """

    def __init__(
        self,
        sources: Sequence[Shards],
        mixture: Mixture,
        sample_rate: int,
        reading: Reading,
        seed: int | None,
        last: int | None = None,
        crops_per_clip: int = 1,
    ):
        self.sources, self.mixture = list(sources), mixture
        self.sample_rate, self.label_of = sample_rate, {name: i for i, name in enumerate(reading.classes)}
        self._are_numbers = any(name.isdecimal() for name in reading.classes)
        self.seed, self.last, self.crops_per_clip = seed, last, crops_per_clip
        self.reading, self.fields = reading, tuple(reading.fields)

    def __call__(self, position: int, out: Tensor) -> Crop:
        """Writes the crop at a position to ``out``, float32 ``[C, T]``; zeros if there is no usable clip."""
        if self.last is not None and position >= self.last:
            out.zero_()
            return Crop(position)
        source, epoch, shard, number = self.mixture.locate(position)
        shards, (number, crop_number) = self.sources[source], divmod(number, self.crops_per_clip)
        key = str(number)
        try:
            index = shards.index(shard)
            if number >= len(index.keys):
                raise UnusableAudio(f"its shard has {len(index.keys)} clips, fewer than the manifest lists", "missing")
            key = index.keys[number]
            label, fields = self._describe(shards, shard, number)
            crop = read_crop(
                shards.member(shard, index.audio[number], index.sha256[number]),
                out,
                self.sample_rate,
                self._where(epoch, key, crop_number),
                self.reading.convert,
                self.reading.pad,
                index.frames[number] if index.sha256[number] else 0,  # not reliable in other tools' shards
            )
        except (UnusableAudio, RemoteError, OSError) as error:
            out.zero_()
            kind = getattr(error, "kind", "read") if not isinstance(error, RemoteError) else "remote"
            return Crop(position, source, key, skipped=Skipped(shards.paths[shard], key, kind, str(error)))
        if self.reading.augment:
            self.reading.augment(out, seed_of(self.seed or 0, "augment", epoch, key, crop_number))
        return Crop(position, source, key, *crop, label, fields)

    def _where(self, epoch: int, key: str, crop_number: int) -> float:
        if self.seed is None:
            return 0.0
        parts = (crop_number,) if self.crops_per_clip > 1 else ()
        return (crop_number + seed_of(self.seed, "crop", epoch, key, *parts) / 2**63) / self.crops_per_clip

    def _describe(self, shards: Shards, shard: int, number: int) -> tuple[int, tuple[str | np.ndarray, ...]]:
        """Reads the label and fields of a clip; raises UnusableAudio if they are missing or invalid."""
        places = shards.index(shard).fields
        beside = [name for name in self.fields if name.rpartition(".")[2] in READERS]
        needed = [*beside, *(["json"] if self.label_of or len(beside) < len(self.fields) else [])]
        needed += ["cls"] if self.label_of and "cls" in places and "cls" not in beside else []
        found: dict = {}
        try:
            for name in needed:
                place = places[name][number] if name in places else (0, 0)
                if place[1]:
                    member = shards.member(shard, place)
                    found[name] = READERS[name.rpartition(".")[2]](
                        member if isinstance(member, memoryview) else member.read()
                    )
            meta = found.get("json", {})
            fields = tuple(found[name] if name in beside else _plain(name, meta[name]) for name in self.fields)
        except KeyError as error:
            raise UnusableAudio(f"has no {error.args[0]}", "metadata") from error
        except ValueError as error:
            raise UnusableAudio(str(error), "metadata") from error
        return self._label(meta, found.get("cls")), fields

    def _label(self, meta: dict, cls: str | None) -> int:
        """Returns the index of a clip's class from its json, else from its ``.cls`` member; -1 if there are no classes,
        or if the label in the json is null.

        Raises:
            UnusableAudio: if the label is not one of the classes.
        """
        if not self.label_of or ("label" in meta and meta["label"] is None):
            return -1
        label = meta.get("label", cls)
        number = self.label_of.get(_as_text(label))
        if number is None and "label" not in meta and cls is not None and cls.isdecimal() and not self._are_numbers:
            number = int(cls) if int(cls) < len(self.label_of) else None  # an index into the list of classes
        if number is None:
            raise UnusableAudio(f"label {label!r} is not one of {', '.join(self.label_of)}", "label")
        return number

    def whole_members(self, positions: Sequence[int]) -> list[tuple[str, int, int, str]]:
        """Returns the ranges of remote shards that these positions need, see ``Shards.whole_members``."""
        ranges = []
        for position in positions:
            if self.last is None or position < self.last:
                source, _, shard, number = self.mixture.locate(position)
                ranges += self.sources[source].whole_members(shard, number // self.crops_per_clip, self.fields)
        return ranges


def _as_text(label: object) -> str:
    """Converts a label to the name of a class: numbers become text."""
    if isinstance(label, str):
        return label
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label) if isinstance(label, int | float) and not isinstance(label, bool) else ""


def _plain(name: str, value: object) -> str | np.ndarray:
    """Converts a json value to a field: text, or a number as an array without dimensions."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return np.array(value, dtype=np.float32)
    raise ValueError(f"its {name} is a {type(value).__name__}, neither text nor a number")


class BatchReader:
    """Reads the batch at given positions, into shared memory if it is given.

    Args:
        reader: reads one clip.
        shape: (C, T) of a crop.
        slots: shared memory for the batches, or None.
    """

    def __init__(self, reader: ClipReader, shape: tuple[int, int], slots: SharedSlots | None):
        self.reader, self.shape, self.slots = reader, shape, slots

    def __call__(self, positions: list[int]) -> AudioBatch | Parcel:
        info = get_worker_info()
        worker = info.id if info else 0
        slot = self.slots.take(worker) if self.slots else None
        if self.slots is None or slot is None:
            audio = torch.empty(len(positions), *self.shape)
        else:
            audio = self.slots.tensor(worker, slot, lease=info is None)
        clips = [self.reader(position, out) for position, out in zip(positions, audio, strict=True)]
        with_label, fields = bool(self.reader.label_of), self.reader.fields
        if self.slots is None or slot is None or info is None:
            return collate(audio, clips, with_label, fields)
        return Parcel(self.slots, worker, slot, clips, with_label, fields)


def read_in_order(
    shards: Shards,
    sample_rate: int,
    channels: int,
    num_samples: int,
    classes: Sequence[str],
    fields: Sequence[str] = (),
    seed: int | None = None,
) -> Iterator[tuple[Crop, Tensor]]:
    """Yields each clip once, in the shards' order or shuffled by ``seed``, and its start as a new ``[C, T]``."""
    order = ClipOrder(shards.num_clips, seed)
    reader = ClipReader([shards], Mixture([order], [1], None), sample_rate, Reading(classes, fields), None)
    for position in range(order.num_clips):
        audio = torch.empty(channels, num_samples)
        yield reader(position, audio), audio
