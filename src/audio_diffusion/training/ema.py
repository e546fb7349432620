"""Exponential moving average of the weights."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class EmaWeights(nn.Module):
    """A copy of a network whose weights are the moving average of the network's.

    After n updates the decay is min(``decay``, (1 + n)/(10 + n)), so that the first, random weights are soon
    forgotten. All parameters are averaged in one fused (foreach) pass. The number of updates is saved and
    restored with the weights.

    Args:
        net: the network whose weights are followed.
        decay: weight of the past in each update, inside [0, 1).

    Raises:
        ValueError: if ``decay`` lies outside [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float = 0.9999):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay: expected 0 to below 1, got {decay}")
        self.decay = decay
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.num_updates = 0

    @property
    def half_life(self) -> float:
        """Number of updates after which a weight's share in the average has halved: decay^n = 1/2."""
        return math.log(0.5) / math.log(self.decay) if self.decay else 0.0

    def get_extra_state(self) -> Tensor:
        """Returns the number of updates for the state dict."""
        return torch.tensor(self.num_updates)

    def set_extra_state(self, state: Tensor) -> None:
        self.num_updates = int(state)

    def train(self, mode: bool = True) -> "EmaWeights":
        """Keeps evaluation mode, whatever ``mode`` is: averaged weights are never trained."""
        return super().train(False)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """ema ← decay·ema + (1 - decay)·net, once per optimizer step; buffers are copied."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        torch._foreach_lerp_(_local(self.net), _local(net), 1 - decay)
        for mine, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(theirs)


def _local(net: nn.Module) -> list[Tensor]:
    """Returns the data of the parameters (for sharded ones, this rank's part, since the average is elementwise)."""
    return [p.to_local() if isinstance(p, DTensor) else p.detach() for p in net.parameters()]
