"""Copies a checkpoint's content to host memory, so that it can be written while training continues."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class HostCopy:
    """Makes deep copies of nested dicts, lists and tuples, with tensors in host memory.

    Each copy reuses the memory of the previous one, which must no longer be in use: new memory is several times slower,
    as the system clears it page by page. Tensors on a GPU are copied asynchronously to pinned memory.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, content: Any) -> Any:
        """Returns a copy of the content, valid until the next call."""
        copied = self._copy(content, "")
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, node: Any, place: str) -> Any:
        if isinstance(node, DTensor):  # this rank's shard; its constructor does not move it
            return DTensor(self._copy(node.to_local(), place), node._spec, requires_grad=False)
        if isinstance(node, Tensor):
            return self._buffer(node, place).copy_(node.detach(), non_blocking=True)
        if isinstance(node, Mapping):
            return {key: self._copy(value, f"{place}.{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)([self._copy(value, f"{place}[{i}]") for i, value in enumerate(node)])
        return copy.deepcopy(node)

    def _buffer(self, tensor: Tensor, place: str) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
            self._buffers[place] = buffer
        return buffer


def non_finite(content: Any) -> str | None:
    """Returns the place of a tensor that is not finite in nested dicts, lists and tuples; None if there is none.

    It is one fused pass over all tensors of a type; a tensor whose norm is not finite, which may also be due to large
    values, is then checked value by value.
    """
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[str], list[Tensor]]] = {}
    for place, tensor in _tensors(content, ""):
        tensor = (
            tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
        )  # this rank's part of sharded ones
        if tensor.is_floating_point() and tensor.numel():
            places, tensors = groups.setdefault((tensor.device, tensor.dtype), ([], []))
            places.append(place)
            tensors.append(tensor)
    for places, tensors in groups.values():
        finite = torch.isfinite(torch.stack(torch._foreach_norm(tensors))).tolist()
        for place, tensor, sure in zip(places, tensors, finite, strict=True):
            if not sure and not torch.isfinite(tensor).all():
                return place
    return None


def num_bytes(content: Any) -> int:
    """Returns the bytes of all tensors in nested dicts, lists and tuples; of sharded ones, this rank's part."""
    own = (t.to_local() if isinstance(t, DTensor) else t for _, t in _tensors(content, ""))
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def _tensors(node: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield place, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _tensors(value, f"{place}.{key}".strip("."))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _tensors(value, f"{place}[{i}]")
