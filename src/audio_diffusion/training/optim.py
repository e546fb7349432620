"""Optimizer groups and learning-rate schedules."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict]:
    """Returns two groups: weight matrices and kernels, with decay; biases, norms and embeddings, without."""
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in net.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def state_names(optimizer: Callable[[list[dict]], Optimizer]) -> set[str]:
    """Returns the names of the state an optimizer keeps of each parameter, such as ``exp_avg``."""
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones_like(parameter)
    made = optimizer([{"params": [parameter]}])
    made.step()
    return set(made.state[parameter])


def warmup_cosine(
    optimizer: Optimizer, *, warmup_steps: int, total_steps: int, final_fraction: float = 0.0
) -> LambdaLR:
    """Creates a schedule with linear warm-up and cosine decay (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5).

    The rate rises linearly over ``warmup_steps``, then falls along half a cosine to ``final_fraction`` of the full rate
    at ``total_steps``. ``final_fraction`` 1 keeps it constant. A run shorter than the warm-up ends in the middle of it.

    Raises:
        ValueError: if ``warmup_steps`` is negative, or ``final_fraction`` lies outside [0, 1].
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps: expected 0 or more, got {warmup_steps}")
    if not 0 <= final_fraction <= 1:
        raise ValueError(f"final_fraction: expected 0 to 1, got {final_fraction}")
    return LambdaLR(optimizer, _factor(warmup_steps, total_steps, final_fraction))


def _factor(warmup_steps: int, total_steps: int, final_fraction: float) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
