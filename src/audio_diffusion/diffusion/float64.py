"""Double precision, on devices that have it and on those that do not."""

from torch import Tensor

#: kinds of devices that have no float64: Apple silicon's GPU
WITHOUT = frozenset({"mps"})


def at_home(tensor: Tensor) -> Tensor:
    """The tensor where it can be computed with in float64: on its own device, or on the CPU if that has none."""
    return tensor.cpu() if tensor.device.type in WITHOUT else tensor


def in_double(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device, or on the CPU if that has none."""
    return at_home(tensor).double()
