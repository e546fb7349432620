"""Power-function averages: the recurrence against its closed form, and what a snapshot brings back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from audio_diffusion.inference.averages import gamma_of
from audio_diffusion.training.power_ema import PowerEma, decay_of


def moved(net: nn.Module) -> torch.Tensor:
    """Takes a stand-in for an optimizer step; returns the weights in one vector."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_average_is_the_integral_over_the_power_profile() -> None:
    torch.manual_seed(0)
    net, lengths, steps = nn.Linear(5, 3), (0.05, 0.10, 0.25), 60
    average = PowerEma(net, lengths)
    history = []
    for _ in range(steps):
        history.append(moved(net).double().numpy())
        average.update(net)
    snapshot = average.snapshot(net, 77)
    assert (snapshot.step, snapshot.num_updates, snapshot.origin) == (77, steps, 0)
    for length, found in zip(snapshot.lengths, snapshot.averages, strict=True):
        weights = np.diff((np.arange(steps + 1) / steps) ** (gamma_of(length) + 1))
        expected = weights @ np.stack(history)
        np.testing.assert_allclose(torch.cat([v.flatten() for v in found.values()]), expected, rtol=1e-4, atol=1e-5)


def test_decay_is_the_papers() -> None:
    assert decay_of(6.94, 1) == 0
    for t in (2, 3, 1000):
        assert decay_of(6.94, t) == pytest.approx((1 - 1 / t) ** 7.94, rel=1e-12)


def test_the_first_step_replaces_the_initial_weights() -> None:
    net = nn.Linear(5, 3)
    average = PowerEma(net, (0.05, 0.10))
    moved(net)
    average.update(net)
    assert all(torch.equal(one["weight"], net.weight) for one in average.snapshot(net, 1).averages)


def test_the_state_goes_on_exactly() -> None:
    net = nn.Linear(5, 3)
    through, stopped = PowerEma(net, (0.05, 0.10)), PowerEma(net, (0.05, 0.10), origin=3)
    for _ in range(7):
        moved(net)
        through.update(net)
    stopped.load(net, copy.deepcopy(vars(through.snapshot(net, 7))))
    for _ in range(5):
        moved(net)
        through.update(net)
        stopped.update(net)
    first, second = through.snapshot(net, 12), stopped.snapshot(net, 12)
    assert (first.num_updates, first.origin) == (second.num_updates, second.origin) == (12, 0)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(first.averages, second.averages, strict=True) for k in a)
    with pytest.raises(ValueError, match="averages of another network: weight differs"):
        PowerEma(nn.Linear(4, 3), (0.05, 0.10)).load(nn.Linear(4, 3), vars(first))


def test_a_snapshot_has_all_of_the_state_dict() -> None:
    """Buffers as they are, and a parameter that is used twice under both names."""
    net = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1))
    net[2].weight = net[0].weight
    average = PowerEma(net, (0.05, 0.10))
    net(torch.randn(8, 4, 20))
    moved(net)
    average.update(net)
    snapshot = average.snapshot(net, 1)
    state = {**snapshot.rest, **snapshot.averages[0]}
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert set(snapshot.rest) == {name for name, _ in net.named_buffers()}
