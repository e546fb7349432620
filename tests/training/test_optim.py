"""Which parameters decay, and the learning rate at every step."""

import math

import pytest
import torch
from torch import nn

from audio_diffusion.networks.conditions.condition import Label
from audio_diffusion.networks.unet1d import UNet1d
from audio_diffusion.training.optim import parameter_groups, warmup_cosine


@pytest.fixture
def net() -> UNet1d:
    return UNet1d(1, {"label": Label(3)}, patch_size=4, widths=(8, 64), factors=(2,), num_blocks=1, cond_width=16)


def names_in(net: nn.Module, group: dict) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in net.named_parameters() if id(p) in ids}


# Groups


def test_matrices_and_kernels_decay_and_the_rest_does_not(net: UNet1d) -> None:
    decayed, kept = parameter_groups(net, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    expected = {
        f"{name}.weight"
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d)
    }
    assert names_in(net, decayed) == expected
    rest = names_in(net, kept)
    assert rest == {name for name, _ in net.named_parameters()} - expected
    assert "conditions.embedders.label.embedding.weight" in rest
    assert {"norm.weight", "norm.bias", "attention.norm.weight", "gate.bias"} <= rest
    assert {"time.mlp.0.weight", "patch.weight", "attention.qkv.weight"} <= expected


def test_every_parameter_is_in_one_group(net: UNet1d) -> None:
    decayed, kept = parameter_groups(net, 0.1)
    ids = [id(p) for p in decayed["params"] + kept["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())


def test_frozen_parameters_are_left_out(net: UNet1d) -> None:
    net.time.requires_grad_(False)
    names = set().union(*(names_in(net, group) for group in parameter_groups(net, 0.1)))
    assert names == {name for name, _ in net.named_parameters() if not name.startswith("time.")}


def test_decay_shrinks_weights_only() -> None:
    net = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(net, weight_decay=0.5), lr=0.1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if name == "1.weight" else 1.0))


# Learning rate


def rates(steps: int, **options: float) -> list[float]:
    """The rate of each of the first steps, at a full rate of 2."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, **options)  # type: ignore[arg-type]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_warmup_then_half_a_cosine(final: float) -> None:
    got = rates(31, warmup_steps=10, total_steps=30, final_fraction=final)
    warmup = [2.0 * (i + 1) / 10 for i in range(10)]
    cosine = [2.0 * (final + (1 - final) * math.cos(math.pi / 2 * i / 20) ** 2) for i in range(21)]
    assert got == pytest.approx(warmup + cosine)
    assert got[20] == pytest.approx(1.0 + final)  # halfway down
    assert got[30] == pytest.approx(2.0 * final)


def test_rate_stays_at_its_end() -> None:
    assert rates(40, warmup_steps=5, total_steps=20, final_fraction=0.1)[20:] == pytest.approx([0.2] * 20)


def test_without_warmup_it_starts_at_the_full_rate() -> None:
    assert rates(5, warmup_steps=0, total_steps=4)[0] == 2.0
    assert rates(5, warmup_steps=0, total_steps=4, final_fraction=1.0) == [2.0] * 5


def test_default_end_is_zero() -> None:
    assert rates(5, warmup_steps=0, total_steps=4)[4] == pytest.approx(0.0)


@pytest.mark.parametrize("total_steps", [0, 4, 8])
def test_a_run_shorter_than_its_warmup_ends_inside_it(total_steps: int) -> None:
    assert rates(8, warmup_steps=8, total_steps=total_steps) == pytest.approx([2.0 * (i + 1) / 8 for i in range(8)])


def test_no_step_is_wasted_at_rate_zero() -> None:
    assert min(rates(20, warmup_steps=10, total_steps=20)) > 0


def test_resumed_schedule_goes_on() -> None:
    options = {"warmup_steps": 4, "total_steps": 12}
    one = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(one, **options)
    for _ in range(6):
        one.step()
        schedule.step()
    two = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    resumed = warmup_cosine(two, **options)
    two.load_state_dict(one.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for expected in rates(12, **options)[6:]:
        assert two.param_groups[0]["lr"] == pytest.approx(expected)
        two.step()
        resumed.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps: expected 0 or more, got -1"),
        ({"final_fraction": -0.1}, r"final_fraction: expected 0 to 1, got -0\.1"),
        ({"final_fraction": 1.5}, r"final_fraction: expected 0 to 1, got 1\.5"),
        ({"final_fraction": math.nan}, "final_fraction: expected 0 to 1, got nan"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(1, **{"warmup_steps": 1, "total_steps": 2, **options})
