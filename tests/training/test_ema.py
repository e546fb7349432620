"""The averaged weights: the formula, what is copied, and what a checkpoint brings back."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from audio_diffusion.networks.conditions.condition import Label
from audio_diffusion.networks.unet1d import UNet1d
from audio_diffusion.training.ema import EmaWeights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_net() -> UNet1d:
    return UNet1d(1, {"label": Label(3)}, patch_size=4, widths=(8, 64), factors=(2,), num_blocks=1, cond_width=16)


def move(net: nn.Module) -> None:
    """A stand-in for an optimizer step."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))


def set_to(net: nn.Linear, value: float) -> None:
    with torch.no_grad():
        net.weight.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_decay_warms_up(decay: float) -> None:
    """Against the hand loop: decay min(decay, (1 + n)/(10 + n)) at the n-th update, counted from 0."""
    net = nn.Linear(1, 1, bias=False)
    set_to(net, 5.0)
    ema, average = EmaWeights(net, decay), 5.0
    for n in range(100):
        set_to(net, math.sin(n))
        ema.update(net)
        now = min(decay, (1 + n) / (10 + n))
        average = now * average + (1 - now) * math.sin(n)
        assert ema.net.weight.item() == pytest.approx(average, abs=1e-5)
    assert ema.num_updates == 100


def test_the_half_life_is_the_number_of_updates_that_halve_a_share() -> None:
    ema = EmaWeights(nn.Linear(1, 1), decay=0.999)
    assert 0.999**ema.half_life == pytest.approx(0.5)
    assert EmaWeights(nn.Linear(1, 1), decay=0.0).half_life == 0


def test_decay_zero_follows_and_long_decay_remembers() -> None:
    net = nn.Linear(1, 1, bias=False)
    set_to(net, 0.0)
    close, far = EmaWeights(net, 0.0), EmaWeights(net, 0.99)
    far.num_updates = 10_000
    set_to(net, 1.0)
    close.update(net)
    assert close.net.weight.item() == 1
    for _ in range(100):
        far.update(net)
    assert far.net.weight.item() == pytest.approx(1 - 0.99**100, abs=1e-5)


def test_one_pass_is_the_average_of_each_tensor() -> None:
    net = make_net()
    ema = EmaWeights(net, 0.3)
    expected = {name: p.detach().double() for name, p in net.named_parameters()}
    for n in range(5):
        move(net)
        ema.update(net)
        decay = min(0.3, (1 + n) / (10 + n))
        for name, p in net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()
    for name, p in ema.net.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_update_does_not_touch_the_network() -> None:
    net = make_net()
    ema = EmaWeights(net, 0.9)
    at_first = copy.deepcopy(ema.net.state_dict())
    move(net)
    kept = copy.deepcopy(net.state_dict())
    assert all(torch.equal(ema.net.state_dict()[name], at_first[name]) for name in at_first)  # nothing is shared
    ema.update(net)
    assert all(torch.equal(net.state_dict()[name], kept[name]) for name in kept)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_state_dict_round_trip_goes_on_exactly() -> None:
    """Saved and loaded as a checkpoint is, without pickled code, the average goes on as if nothing happened."""
    net = make_net()
    ema = EmaWeights(net, 0.999)
    for _ in range(7):
        move(net)
        ema.update(net)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    other = EmaWeights(make_net(), 0.999)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.num_updates == 7
    for _ in range(3):
        move(net)
        ema.update(net)
        other.update(net)
    assert other.num_updates == ema.num_updates == 10
    for mine, theirs in zip(ema.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_buffers_are_copied() -> None:
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4))
    ema = EmaWeights(net, 0.99)
    net(torch.randn(8, 1, 20))
    assert not torch.equal(net[1].running_mean, ema.net[1].running_mean)
    ema.update(net)
    for name, buffer in net.named_buffers():
        assert torch.equal(dict(ema.net.named_buffers())[name], buffer), name
    net(torch.randn(8, 1, 20))
    assert not torch.equal(net[1].running_mean, ema.net[1].running_mean)  # a copy, not a view
    assert net[1].num_batches_tracked == 2
    assert ema.net[1].num_batches_tracked == 1


def test_averages_never_train() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    parent = nn.ModuleDict({"net": net, "ema": EmaWeights(net)})
    assert net.training
    assert not any(module.training for module in EmaWeights(net).net.modules())
    parent.train()
    assert net.training
    assert net[1].training
    ema = parent["ema"]
    assert isinstance(ema, EmaWeights)
    assert ema.train() is ema
    assert not any(module.training for module in ema.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    x = torch.ones(1, 4)
    assert torch.equal(ema.net(x), ema.net(x))  # dropout is off
    net[0].weight.sum().backward()
    ema.update(net)
    assert not any(p.requires_grad or p.grad is not None for p in ema.parameters())


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0, math.nan])
def test_decay_must_be_below_one(decay: float) -> None:
    with pytest.raises(ValueError, match=f"ema_decay: expected 0 to below 1, got {decay}"):
        EmaWeights(nn.Linear(1, 1), decay)
