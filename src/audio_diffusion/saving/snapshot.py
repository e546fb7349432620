"""A checkpoint's content as it is at one moment, in host memory, while training goes on."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def to_host(content: Any) -> Any:
    """A copy of nested dicts, lists and tuples that shares nothing with them: tensors too, in host memory.

    Tensors on a GPU go to pinned memory, all under way at once.
    """
    copied = _copy(content)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copied


def _copy(node: Any) -> Any:
    if isinstance(node, DTensor):  # this rank's shard; the constructor leaves it where it is
        return DTensor(_copy(node.to_local()), node._spec, requires_grad=False)
    if isinstance(node, Tensor):
        tensor = node.detach()
        if tensor.device.type == "cpu":
            return tensor.clone()  # the optimizer works in place
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        return pinned.copy_(tensor, non_blocking=True)
    if isinstance(node, Mapping):
        return {key: _copy(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)([_copy(value) for value in node])
    return copy.deepcopy(node)


def non_finite(content: Any) -> str | None:
    """The place of a tensor with a NaN or an infinity in nested dicts, lists and tuples; None where there is none.

    One fused pass over all of them, and one wait for the device.
    """
    places, tensors = [], []
    for place, tensor in _tensors(content, ""):
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()  # of sharded ones our part
        if tensor.is_floating_point() and tensor.numel():
            places.append(place)
            tensors.append(tensor)
    if not tensors:
        return None
    largest = torch._foreach_norm(tensors, math.inf)  # the largest magnitude, unlike a sum of squares, never overflows
    finite = torch.isfinite(torch.stack([value.float().to(largest[0].device) for value in largest])).tolist()
    return next((place for place, good in zip(places, finite, strict=True) if not good), None)


def _tensors(node: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield place, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _tensors(value, f"{place}.{key}".strip("."))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _tensors(value, f"{place}[{i}]")
