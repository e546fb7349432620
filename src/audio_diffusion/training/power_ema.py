"""Power-function averages of the weights (Karras et al. 2024, arXiv:2312.02696, section 3.1)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from audio_diffusion.checkpoints.averages import Snapshot
from audio_diffusion.inference.averages import gamma_of


def decay_of(gamma: float, t: int) -> float:
    """Returns beta(t) = (1 - 1/t)^(gamma + 1), the weight of the past in the update of step t = 1, 2, .. (section 3.1).

    The average is then the integral of the weights, constant within each step, over the profile t^gamma.
    """
    return math.exp((gamma + 1) * math.log1p(-1 / t)) if t > 1 else 0.0


class PowerEma:
    """Averages of a network's weights of several relative lengths, in float32; each rank averages its part.

    Unlike the length of ``EmaWeights``, theirs grows with the training: a relative length of 0.10 averages about the
    last tenth of all steps so far. The first update replaces the initial values.

    Args:
        net: the network whose weights are followed.
        lengths: relative lengths (sigma_rel), each above 0 and at most 0.2886.
        origin: the run's step after which averaging begins.
        device: device of the averages; None for each weight's device.
    """

    def __init__(
        self, net: nn.Module, lengths: Sequence[float], origin: int = 0, device: torch.device | str | None = None
    ):
        self.lengths, self.origin, self.num_updates = tuple(lengths), origin, 0
        self._gammas = [gamma_of(length) for length in self.lengths]
        own = [_local(p) for p in net.parameters()]
        self._averages = [
            [torch.zeros_like(p, dtype=torch.float32, device=device or p.device) for p in own] for _ in self.lengths
        ]

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """average ← beta(t)·average + (1 - beta(t))·net, once per optimizer step that is taken."""
        self.num_updates += 1
        now = [_local(p) for p in net.parameters()]
        for gamma, average in zip(self._gammas, self._averages, strict=True):
            there = [value.to(mine) for value, mine in zip(now, average, strict=True)]
            torch._foreach_lerp_(average, there, 1 - decay_of(gamma, self.num_updates))

    def snapshot(self, net: nn.Module, step: int, keep: bool = True) -> Snapshot:
        """Returns the averages as whole tensors. If the network is sharded, all ranks must call it.

        Args:
            net: the network, for its buffers and other state.
            step: the run's step.
            keep: whether this rank needs the tensors of a sharded network; without it, they are left out.
        """
        parameters = dict(net.named_parameters())
        averages = []
        for average in self._averages:
            whole = {}
            for (name, parameter), value in zip(parameters.items(), average, strict=True):
                value = _whole(value, parameter)
                if keep or not isinstance(parameter, DTensor):
                    whole[name] = value
            averages.append(whole)
        # a parameter that is used in two places has two names in the state dict, but only one here
        names = {id(p): name for name, p in parameters.items()}
        rest = {}
        for name, value in net.state_dict(keep_vars=True).items():
            if id(value) not in names:
                rest[name] = value.detach() if isinstance(value, Tensor) else value
            elif name not in parameters and names[id(value)] in averages[0]:
                for whole in averages:
                    whole[name] = whole[names[id(value)]]
        return Snapshot(step, self.origin, self.num_updates, list(self.lengths), averages, rest)

    def load(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """Restores the averages from ``vars(snapshot)``; of a sharded network this rank's part.

        Raises:
            ValueError: if they belong to another network.
        """
        parameters = dict(net.named_parameters())
        for mine, saved in zip(self._averages, state["averages"], strict=True):
            for (name, parameter), value in zip(parameters.items(), mine, strict=True):
                if name not in saved or saved[name].shape != parameter.shape:
                    raise ValueError(f"power_ema: the checkpoint has averages of another network: {name} differs")
                value.copy_(_part(saved[name], parameter))
        self.origin, self.num_updates = state["origin"], state["num_updates"]


def _local(parameter: Tensor) -> Tensor:
    """Returns a parameter's data (if it is sharded, this rank's part, since the average is elementwise)."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()


def _whole(value: Tensor, parameter: Tensor) -> Tensor:
    """Gathers an average from the ranks among which its parameter is sharded."""
    if not isinstance(parameter, DTensor):
        return value
    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    ).full_tensor()


def _part(whole: Tensor, parameter: Tensor) -> Tensor:
    """Returns this rank's part of an average."""
    if not isinstance(parameter, DTensor):
        return whole
    here = whole.to(parameter.device)
    part = distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return part.to_local()
