"""Double precision on all devices; those without float64 use the CPU."""

from torch import Tensor

#: types of devices without float64: the GPU of Apple silicon
WITHOUT = frozenset({"mps"})


def at_home(tensor: Tensor) -> Tensor:
    """Moves a tensor to a device with float64: its own, or the CPU if its own lacks float64."""
    return tensor.cpu() if tensor.device.type in WITHOUT else tensor


def in_double(tensor: Tensor) -> Tensor:
    """Converts a tensor to float64, on its own device, or on the CPU if that lacks float64."""
    return at_home(tensor).double()
