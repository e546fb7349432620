"""Weights of another model: what fits is taken, by name and by class; the rest is named."""

import copy

import pytest
import torch

from audio_diffusion.networks.conditions.condition import Label, Number
from audio_diffusion.networks.unet1d import UNet1d
from audio_diffusion.training.initial import take_weights

SMALL = {"patch_size": 16, "widths": (8, 16), "factors": (4,), "num_blocks": 1, "cond_width": 16, "attention": False}
LABELS = "conditions.embedders.label.embedding.weight"


def network(num_classes: int = 0, seconds: bool = False, **options) -> UNet1d:
    conditions = {"label": Label(num_classes)} if num_classes else {}
    conditions |= {"seconds": Number(0, 10)} if seconds else {}
    return UNet1d(1, conditions, **{**SMALL, **options})


def test_all_weights_of_the_same_network_are_taken() -> None:
    torch.manual_seed(0)
    net, other = network(2), network(2)
    taken = take_weights(net, other.state_dict(), ["a", "b"], ["a", "b"])
    assert (taken.new, taken.left, taken.lines()) == ([], [], [])
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def test_embeddings_go_by_the_names_of_the_classes() -> None:
    torch.manual_seed(0)
    net, other = network(3), network(2)
    before = copy.deepcopy(net.state_dict())[LABELS]
    taken = take_weights(net, other.state_dict(), ["new", "b", "a"], ["a", "b"])
    rows, theirs = net.state_dict()[LABELS], other.state_dict()[LABELS]
    assert torch.equal(rows[[0, 2, 3]], theirs[[0, 2, 1]])  # row 0: not given
    assert torch.equal(rows[1], before[1])
    assert taken.lines() == ["init: new embeddings for the labels new; those of b, a are taken"]


def test_other_classes_of_the_same_number_are_not_taken_for_each_other() -> None:
    net, other = network(2), network(2)
    before = copy.deepcopy(net.state_dict())[LABELS]
    assert take_weights(net, other.state_dict(), ["c", "d"], ["a", "b"]).new_labels == ["c", "d"]
    assert torch.equal(net.state_dict()[LABELS][1:], before[1:])


def test_conditions_may_come_and_go() -> None:
    net, other = network(seconds=True), network(2)
    taken = take_weights(net, other.state_dict(), [], ["a", "b"])
    assert taken.left == [LABELS]
    assert all(name.startswith("conditions.embedders.seconds.") for name in taken.new)
    assert [line.split(":")[0] for line in taken.lines()] == ["init", "init"]


def test_sizes_elsewhere_must_be_the_same_and_are_named() -> None:
    with pytest.raises(ValueError, match=r"time\.mlp\.0\.weight has \[16, 128\] there, \[32, 128\] here"):
        take_weights(network(cond_width=32), network().state_dict(), [], [])


def test_a_network_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="its network has another architecture: it has 0 of this network's"):
        take_weights(network(), {"other.weight": torch.zeros(3)}, [], [])
