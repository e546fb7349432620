"""The contract of a network, which estimates the noise (or x0, or v) in a noised signal."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from audio_diffusion.diffusion.contracts import Member, check
from audio_diffusion.networks.conditions.condition import Conditions


class Network(Protocol):
    """A ``torch.nn.Module`` that maps x_t, t and conditions to a tensor of x_t's shape.

    The smallest one that can be trained::

        class MyNet(nn.Module):
            multiple = 1

            def __init__(self, channels: int, conditions: Mapping[str, Condition] = {}, width: int = 64):
                super().__init__()
                self.conditions = Conditions(conditions, width)
                ...

            def forward(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
                embedded = self.conditions(cond)  # vector [B, width], tokens [B, S, width], frames [B, width, F]
                ...

    ``model._target_=my_package.MyNet model.width=128`` trains it: ``channels`` is filled in from the representation,
    ``conditions`` from the configuration group ``condition``. ``trainer=fsdp`` shards the blocks that are in an
    ``nn.ModuleList``.

    Attributes:
        conditions: the inputs of the network besides x_t and t; ``Conditions({}, width)`` for none.
        multiple: the length L of x_t must be a multiple of this number.
    """

    conditions: Conditions
    multiple: int

    def __call__(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Returns the output, float ``[B, D, L]``; the parameterization defines its meaning.

        Args:
            x_t: noised signals ``[B, D, L]``.
            t: times ``[B]`` in [0, 1], float32; 0 is clean.
            cond: conditions by name, as ``conditions.read`` prepares them from a batch.
        """
        ...


_MEMBERS = {
    "conditions": Member("conditions: Conditions (Conditions({}, width) for nothing)", Conditions),
    "multiple": Member("multiple: int, of which the length of x_t must be a multiple (1 for any)", int),
    "forward": Member("forward(x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor", arguments=3),
}


def check_network(net: object) -> None:
    """Checks that an object is a ``Network``.

    Raises:
        ValueError: if it is not; the message names its class, the missing or wrong member and its declaration.
    """
    check(net, "network (audio_diffusion.networks.network)", _MEMBERS)
