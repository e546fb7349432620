"""Conditions: the inputs of a network besides x_t and t.

A condition has two halves. A ``Condition`` has no learnt weights: it converts values from the data or the user
(numbers, words, audio) into one tensor ``[B, ..]`` in which -1 (integers) or NaN (floats) means "not given", and it
creates the module that embeds this tensor. That module is learnt, is part of the network, and has a learnt embedding
for "not given".

There are three kinds. A *vector* is added to the embedding of t. *Tokens* are attended to; their mean is used as a
vector as well (Saharia et al. 2022, arXiv:2205.11487, section 2.4). *Frames* run along time. A network holds a
``Conditions`` module, calls it, and uses the kinds that it supports.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from audio_diffusion.networks.conditions import IN_EVERY_BATCH
from audio_diffusion.networks.layers import LabelEmbedding, NullableEmbedding, NullableTokens, TimeEmbedding

#: B values from the data or the user: numbers or audio as a tensor ``[B, ..]``, or words
Values = Tensor | Sequence[str]
Device = torch.device | str
Kind = Literal["vector", "tokens", "frames"]


def numbers(values: Values, name: str, device: Device) -> Tensor:
    """Returns the values as a tensor on ``device``.

    Raises:
        ValueError: if the values are words instead of numbers.
    """
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}: expected numbers, got words such as {next(iter(values), '')!r}")
    return values.to(device)


class Condition(ABC):
    """One condition of a network: how its values are read and embedded.

    Args:
        field: name of the batch's field that holds the values; None for the condition's own name.
    """

    kind: Kind

    def __init__(self, field: str | None = None):
        self.field = field

    @abstractmethod
    def prepare(self, values: Values, device: Device) -> Tensor:
        """Converts B values into a tensor ``[B, ..]`` on ``device``, in which -1 or NaN means "not given".

        Raises:
            ValueError: if the values have another type or shape than the condition expects.
        """

    def check(self) -> None:  # noqa: B027
        """Checks, before training starts, that the condition's resources (such as an encoder) can be loaded.

        Raises:
            ValueError: if they cannot.
        """

    @abstractmethod
    def nothing(self, num: int) -> Tensor:
        """Returns the prepared tensor of ``num`` samples whose value is not given."""

    @abstractmethod
    def embedder(self, width: int) -> nn.Module:
        """Creates the module that embeds the prepared tensor as a vector ``[B, width]``, tokens ``[B, S, width]`` with
        a mask ``[B, S]``, or frames ``[B, width, F]``."""


class Label(Condition):
    """Condition on a class index; a vector.

    Args:
        num_classes: number of classes; 0 for data without classes, for which the condition is omitted.
        field: name of the batch's field, which holds integers or whole numbers; None for the condition's own name.

    Raises:
        ValueError: if ``num_classes`` is negative.
    """

    kind = "vector"

    def __init__(self, num_classes: int, field: str | None = None):
        super().__init__(field)
        if num_classes < 0:
            raise ValueError(f"num_classes: expected 0 or more, got {num_classes}")
        self.num_classes = num_classes

    def prepare(self, values: Values, device: Device) -> Tensor:
        """Returns integers ``[B]`` unchanged, and floats ``[B]`` rounded, with NaN as -1.

        Raises:
            ValueError: if an index is not in -1 to ``num_classes`` - 1. Checked only on the CPU, where the check does
                not wait for a device.
        """
        values = numbers(values, "label", device)
        index = values.nan_to_num(-1).round().long() if values.is_floating_point() else values
        if index.device.type == "cpu" and ((index < -1) | (index >= self.num_classes)).any():
            raise ValueError(f"label: expected -1 (none) to {self.num_classes - 1}, got {index.tolist()}")
        return index

    def nothing(self, num: int) -> Tensor:
        return torch.full((num,), -1)

    def embedder(self, width: int) -> nn.Module:
        return LabelEmbedding(self.num_classes, width)


class Number(Condition):
    """Condition on a number, such as seconds_start or seconds_total, embedded as sinusoids; a vector.

    Args:
        low: lowest value; lower ones are clamped to it.
        high: highest value; higher ones are clamped to it. The resolution is a thousandth of the range.
        field: name of the batch's field; None for the condition's own name.

    Raises:
        ValueError: if ``high`` is not above ``low``.
    """

    kind = "vector"

    def __init__(self, low: float, high: float, field: str | None = None):
        super().__init__(field)
        if not high > low:
            raise ValueError(f"high: expected a number above low ({low}), got {high}")
        self.low, self.high = low, high

    def prepare(self, values: Values, device: Device) -> Tensor:
        """Scales numbers ``[B]`` from [low, high] to [0, 1], float32 ``[B]``; NaN stays NaN."""
        values = numbers(values, "number", device).float()
        return ((values - self.low) / (self.high - self.low)).clamp(0, 1)  # NaN is unchanged

    def nothing(self, num: int) -> Tensor:
        return torch.full((num,), torch.nan)

    def embedder(self, width: int) -> nn.Module:
        return NullableEmbedding(TimeEmbedding(width), width)


class Embedding(Condition):
    """Condition on an embedding that was computed in advance and is stored with the clip, such as ``text.npy``.

    Args:
        width: size of the embedding of a clip, or of a token.
        tokens: True for tokens ``[S, width]``, in which rows of NaN are padding; False for a vector ``[width]``.
        field: name of the batch's field; None for the condition's own name.
    """

    def __init__(self, width: int, tokens: bool = True, field: str | None = None):
        super().__init__(field)
        self.width, self.kind = width, "tokens" if tokens else "vector"

    def prepare(self, values: Values, device: Device) -> Tensor:
        """Returns ``[B, S, width]`` or ``[B, width]`` as float32."""
        values = numbers(values, "embedding", device)
        wanted = f"[B, S, {self.width}]" if self.kind == "tokens" else f"[B, {self.width}]"
        if values.ndim != wanted.count(",") + 1 or values.shape[-1] != self.width:
            raise ValueError(f"embedding: expected {wanted} ({self.kind}), got {list(values.shape)}")
        return values.float()

    def nothing(self, num: int) -> Tensor:
        return torch.full((num, 1, self.width) if self.kind == "tokens" else (num, self.width), torch.nan)

    def embedder(self, width: int) -> nn.Module:
        embed = nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, width))
        return NullableTokens(embed, width) if self.kind == "tokens" else NullableEmbedding(embed, width)


class Embedded(NamedTuple):
    """The embedded conditions of B samples; None for a kind that no condition has."""

    vector: Tensor | None = None  # [B, width], sum of the vectors and of the means of the tokens
    tokens: Tensor | None = None  # [B, S, width], the tokens of all conditions, concatenated
    mask: Tensor | None = None  # bool [B, S], False on padding
    frames: Tensor | None = None  # [B, width, F], sum of the frames at the finest of their rates


class Conditions(nn.Module):
    """The conditions of a network by name, with the modules that embed them.

    Args:
        conditions: conditions by name; None and a ``Label`` without classes are left out.
        width: width of every embedding.

    Raises:
        ValueError: if a name cannot be used as a module's name.
    """

    def __init__(self, conditions: Mapping[str, Condition | None], width: int):
        super().__init__()
        self.by_name: dict[str, Condition] = {}
        self.embedders = nn.ModuleDict()
        for name, condition in conditions.items():
            if "." in name or hasattr(self.embedders, name):
                raise ValueError(f"conditions: {name!r} cannot be a name; choose another, and give `field: {name}`")
            if condition is not None and not (isinstance(condition, Label) and condition.num_classes == 0):
                self.by_name[name] = condition
                self.embedders[name] = condition.embedder(width)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the conditions need besides those of every batch: members, or keys of a clip's json."""
        read = (condition.field or name for name, condition in self.by_name.items())
        return tuple(field for field in read if field not in IN_EVERY_BATCH)

    def of_kind(self, kind: Kind) -> list[str]:
        """The names of the conditions of one kind."""
        return [name for name, condition in self.by_name.items() if condition.kind == kind]

    @torch.no_grad()
    def read(self, batch: Mapping[str, Values], device: Device) -> dict[str, Tensor]:
        """Prepares the network's conditions from the fields of a batch; other fields are ignored.

        Raises:
            ValueError: if the batch lacks the field of a condition.
        """
        cond = {}
        for name, condition in self.by_name.items():
            field = condition.field or name
            if field not in batch:
                raise ValueError(
                    f"condition {name}: expected the data to have {field!r}, it has {', '.join(sorted(batch))}; "
                    f"add it to data.reading.fields, or leave the condition out: model.conditions.{name}=null"
                )
            values = batch[field]
            # if no clip of a batch has the field, its values are empty strings, whatever type it has in other batches
            empty = not isinstance(values, Tensor) and not any(values)
            cond[name] = condition.nothing(len(values)).to(device) if empty else condition.prepare(values, device)
        return cond

    @torch.no_grad()
    def given(self, values: Mapping[str, Values | Sequence[float]], num: int, device: Device) -> dict[str, Tensor]:
        """Prepares the network's conditions from a user's values for ``num`` samples; other conditions are "not given".

        Args:
            values: values by the condition's name, one for each sample.
            num: number of samples.
            device: device of the tensors.

        Raises:
            ValueError: if a name is not that of a condition, or has another number of values.
        """
        for name, value in values.items():
            if name not in self.by_name:
                has = ", ".join(sorted(self.by_name)) or "none"
                raise ValueError(f"cond: this model has no condition {name!r}; it has: {has}")
            if len(value) != num:
                raise ValueError(f"cond: expected {num} values of {name}, one per sample, got {len(value)}")
        cond = {}
        for name, condition in self.by_name.items():
            if name in values:
                value = values[name]
                words = isinstance(value, Tensor) or any(isinstance(v, str) for v in value)
                cond[name] = condition.prepare(value if words else torch.tensor(value), device)  # type: ignore[arg-type]
            else:
                cond[name] = condition.nothing(num).to(device)
        return cond

    def forward(self, cond: Mapping[str, Tensor]) -> Embedded:
        """Embeds prepared tensors by name.

        Raises:
            ValueError: if the names are not those of the conditions that the network was built with.
        """
        expected, got = sorted(self.by_name) or "none", sorted(cond) or "none"
        if expected != got:
            raise ValueError(f"cond: this network expects {expected}, got {got}")
        made = {name: embedder(cond[name]) for name, embedder in self.embedders.items()}
        vectors, tokens, frames = ([made[name] for name in self.of_kind(kind)] for kind in get_args(Kind))
        vectors += [_mean(*pair) for pair in tokens]
        return Embedded(
            vector=torch.stack(vectors).sum(0) if vectors else None,
            tokens=torch.cat([t for t, _ in tokens], dim=1) if tokens else None,
            mask=torch.cat([m for _, m in tokens], dim=1) if tokens else None,
            frames=_summed(frames) if frames else None,
        )


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean ``[B, width]`` of the tokens ``[B, S, width]`` that are not padding."""
    return torch.where(mask[:, :, None], tokens, 0).sum(1) / mask.sum(1, keepdim=True)


def _summed(frames: Sequence[Tensor]) -> Tensor:
    """Sums frames of several rates at the finest of the rates."""
    finest = max([f.shape[2] for f in frames])
    return torch.stack([along_time(f, finest) for f in frames]).sum(0)


def along_time(frames: Tensor, length: int) -> Tensor:
    """Interpolates frames ``[B, width, F]``, each centred in its F-th part of the signal, to ``[B, width, length]``."""
    return nn.functional.interpolate(frames, length, mode="linear") if frames.shape[2] != length else frames
