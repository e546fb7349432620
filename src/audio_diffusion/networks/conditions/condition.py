"""What networks are told beside x_t and t, by one mechanism.

A condition comes in two halves. A ``Condition`` is plain and frozen: it turns what the data or a user gives (numbers,
words, audio) into one tensor ``[B, ..]`` in which -1 (integers) or NaN (floats) means "not given", and it says which
module embeds that. The module is learnt, part of the network, and has a learnt embedding for "not given".

What a network adds to the embedding of t is a *vector*, what it attends to are *tokens*, whose mean is a vector as well
(Saharia et al. 2022, arXiv:2205.11487, section 2.4), what runs along time are *frames*. A network holds a
``Conditions``, calls it, and uses the three as it can.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from audio_diffusion.networks.layers import LabelEmbedding, NullableEmbedding, NullableTokens, TimeEmbedding

#: B values as the data or a user has them: numbers or audio as a tensor ``[B, ..]``, or words
Values = Tensor | Sequence[str]
Device = torch.device | str
Kind = Literal["vector", "tokens", "frames"]


def numbers(values: Values, name: str, device: Device) -> Tensor:
    """The values as a tensor on ``device``.

    Raises:
        ValueError: for words where numbers are wanted.
    """
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}: expected numbers, got words such as {next(iter(values), '')!r}")
    return values.to(device)


class Condition(ABC):
    """One thing a network is told of each sample.

    Args:
        field: what it is read from: a name in the batch; None: the condition's own name.
    """

    kind: Kind

    def __init__(self, field: str | None = None):
        self.field = field

    @abstractmethod
    def prepare(self, values: Values, device: Device) -> Tensor:
        """B values -> tensor ``[B, ..]`` on ``device``, "not given" where -1 or NaN.

        Raises:
            ValueError: for values that are not what the condition takes.
        """

    def check(self) -> None:  # noqa: B027
        """Looks, before training starts, whether what it needs can be loaded.

        Raises:
            ValueError: if not.
        """

    @abstractmethod
    def nothing(self, num: int) -> Tensor:
        """The tensor of ``num`` samples that are given nothing."""

    @abstractmethod
    def embedder(self, width: int) -> nn.Module:
        """What embeds the prepared tensor: vector ``[B, width]``, tokens ``[B, S, width]`` with a mask ``[B, S]``, or
        frames ``[B, width, F]``."""


class Label(Condition):
    """A class index, a vector to the network.

    Args:
        num_classes: number of classes; 0 for data without: then there is no such condition.
        field: of the batch, integers or whole numbers; None: the condition's own name.

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
        """Integers ``[B]`` as they are; floats ``[B]`` rounded, NaN to -1.

        Raises:
            ValueError: for others than -1 to ``num_classes`` - 1, where it costs nothing to see: on the CPU.
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
    """A number, such as seconds_start or seconds_total, as sinusoids; a vector to the network.

    Args:
        low: the least value; what lies below is taken for it.
        high: the largest value, likewise. A thousandth of the range can be told apart.
        field: of the batch; None: the condition's own name.

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
        """Numbers ``[B]`` -> their place in the range, float32 ``[B]`` in [0, 1] or NaN."""
        values = numbers(values, "number", device).float()
        return ((values - self.low) / (self.high - self.low)).clamp(0, 1)  # NaN stays

    def nothing(self, num: int) -> Tensor:
        return torch.full((num,), torch.nan)

    def embedder(self, width: int) -> nn.Module:
        return NullableEmbedding(TimeEmbedding(width), width)


class Embedding(Condition):
    """An embedding computed beforehand, from a member of the clip such as ``text.npy``.

    Args:
        width: numbers in the embedding of a clip, or of a token.
        tokens: True: ``[S, width]``, tokens that the network attends to; rows of NaN are padding. False: ``[width]``,
            a vector.
        field: of the batch; None: the condition's own name.
    """

    def __init__(self, width: int, tokens: bool = True, field: str | None = None):
        super().__init__(field)
        self.width, self.kind = width, "tokens" if tokens else "vector"

    def prepare(self, values: Values, device: Device) -> Tensor:
        """``[B, S, width]`` or ``[B, width]``, as it is."""
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
    """All conditions of B samples, embedded; None where no condition is of that kind."""

    vector: Tensor | None = None  # [B, width], their sum
    tokens: Tensor | None = None  # [B, S, width], one after the other
    mask: Tensor | None = None  # bool [B, S], True on tokens that there are
    frames: Tensor | None = None  # [B, width, F], their sum at the finest of their rates


class Conditions(nn.Module):
    """The conditions of a network by name.

    Args:
        conditions: by name; those that are None, or labels of no classes, are left out.
        width: of every embedding.

    Raises:
        ValueError: for a name that cannot be one.
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

    def of_kind(self, kind: Kind) -> list[str]:
        """The names of the conditions of one kind."""
        return [name for name, condition in self.by_name.items() if condition.kind == kind]

    @torch.no_grad()
    def read(self, batch: Mapping[str, Values], device: Device) -> dict[str, Tensor]:
        """What a batch holds by name -> what the network takes; what it has no use for is left out.

        Raises:
            ValueError: if the batch lacks what a condition is read from.
        """
        cond = {}
        for name, condition in self.by_name.items():
            field = condition.field or name
            if field not in batch:
                raise ValueError(
                    f"condition {name}: expected the data to have {field!r}, it has {', '.join(sorted(batch))}; "
                    f"add it to data.fields, or leave the condition out: model.conditions.{name}=null"
                )
            values = batch[field]
            # where no clip has the field it comes as empty words, whatever it is in other batches
            empty = not isinstance(values, Tensor) and not any(values)
            cond[name] = condition.nothing(len(values)).to(device) if empty else condition.prepare(values, device)
        return cond

    @torch.no_grad()
    def given(self, values: Mapping[str, Values | Sequence[float]], num: int, device: Device) -> dict[str, Tensor]:
        """What a user gives of ``num`` samples, by the conditions' names -> what the network takes; the rest is "not
        given".

        Raises:
            ValueError: for a name that is none of the conditions, or another number of values.
        """
        for name, value in values.items():
            if name not in self.by_name:
                has = ", ".join(sorted(self.by_name)) or "none"
                raise ValueError(f"cond: this model has no condition {name!r}; it has: {has}")
            if len(value) != num:
                raise ValueError(f"cond: expected {num} values of {name}, one a sample, got {len(value)}")
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
        """Prepared tensors by name -> what the network uses.

        Raises:
            ValueError: if the conditions given are not the ones the network was built with.
        """
        expected, got = sorted(self.by_name) or "none", sorted(cond) or "none"
        if expected != got:
            raise ValueError(f"cond: this network takes {expected}, got {got}")
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
    """The mean ``[B, width]`` of the tokens ``[B, S, width]`` that there are."""
    return torch.where(mask[:, :, None], tokens, 0).sum(1) / mask.sum(1, keepdim=True)


def _summed(frames: Sequence[Tensor]) -> Tensor:
    """Frames of several rates, summed at the finest."""
    finest = max([f.shape[2] for f in frames])
    return torch.stack([along_time(f, finest) for f in frames]).sum(0)


def along_time(frames: Tensor, length: int) -> Tensor:
    """Frames ``[B, width, F]``, each the middle of its F-th part of the signal -> ``[B, width, length]``, linearly."""
    return nn.functional.interpolate(frames, length, mode="linear") if frames.shape[2] != length else frames
