"""Conditions of every kind, alone and together in a network: what they see, and what "not given" means."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audio_diffusion.networks.conditions.condition import Condition, Conditions, Embedding, Label, Number, along_time
from audio_diffusion.networks.conditions.mel import Mel
from audio_diffusion.networks.conditions.text import Text
from audio_diffusion.networks.unet1d import UNet1d

NAN = float("nan")
KINDS: dict[str, Condition] = {
    "label": Label(3),
    "seconds": Number(0, 10),
    "vector": Embedding(6, tokens=False),
    "text": Embedding(6, field="text.npy"),
    "caption": Text("never/loaded", 5, max_tokens=4),
    "mel": Mel(16_000, 2, n_mels=8, n_fft=64, hop=32),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def prepared(num: int, samples: int = 128) -> dict[str, Tensor]:
    """Something of every kind, given for each of ``num`` samples; the texts' lengths differ."""
    caption = torch.randn(num, 4, 5)
    caption[:, 3] = NAN
    caption[0, 2] = NAN
    return {
        "label": torch.arange(num) % 3,
        "seconds": torch.rand(num),
        "vector": torch.randn(num, 6),
        "text": torch.randn(num, 3, 6),
        "caption": caption,
        "mel": KINDS["mel"].prepare(0.1 * torch.randn(num, 2, samples), "cpu"),
    }


def dropped(value: Tensor) -> Tensor:
    return torch.full_like(value, NAN if value.is_floating_point() else -1)


def wake(net: nn.Module) -> Any:
    """Moves every weight off its start, so that the parts which start at zero take part."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def network() -> UNet1d:
    return wake(UNet1d(2, KINDS, patch_size=4, widths=(16, 64), factors=(2,), num_blocks=1, cond_width=32))


def tensors(embedded: Any) -> list[Tensor]:
    """What a network may see of the embedded conditions."""
    seen = [embedded.vector, embedded.frames]
    if embedded.tokens is not None:
        seen.append(embedded.tokens * embedded.mask[:, :, None])
    return [tensor for tensor in seen if tensor is not None]


@pytest.mark.parametrize("name", KINDS)
def test_a_dropped_sample_teaches_not_given_and_nothing_else(name: str) -> None:
    conditions, value = wake(Conditions({name: KINDS[name]}, 32)), prepared(3)[name]
    for given in (False, True):
        conditions.zero_grad()
        sum(tensor.sin().sum() for tensor in tensors(conditions({name: value if given else dropped(value)}))).backward()
        for key, parameter in conditions.named_parameters():
            gradient = parameter.grad if "embedding.weight" not in key else parameter.grad[1:]
            assert gradient is not None
            assert gradient.isfinite().all()
            assert gradient.any() == (given != key.endswith("nothing")), key
        if name == "label":
            assert conditions.embedders["label"].embedding.weight.grad[0].any() != given


@pytest.mark.parametrize("name", KINDS)
def test_a_network_hears_every_condition_and_its_absence(name: str) -> None:
    net, cond, x_t = network(), prepared(2), torch.randn(1, 2, 128).expand(2, 2, 128)
    cond = {key: value[:1].expand_as(value).clone() for key, value in cond.items()}
    same = net(x_t, torch.full((2,), 0.5), cond)
    torch.testing.assert_close(same[0], same[1])
    for other in (prepared(2)[name][1], dropped(cond[name])[1]):
        cond[name][1] = other
        changed = net(x_t, torch.full((2,), 0.5), cond)
        assert (changed[0] - changed[1]).abs().max() > 1e-4
        torch.testing.assert_close(changed[0], same[0])


def test_a_sample_does_not_see_its_batch_whatever_is_given_or_dropped_beside_it() -> None:
    net, cond, x_t, t = network(), prepared(4), torch.randn(4, 2, 128), torch.rand(4)
    for i, name in enumerate(cond):  # each sample lacks other conditions, the last one all
        cond[name][[i % 3, 3]] = dropped(cond[name])[[i % 3, 3]]
    together = net(x_t, t, cond)
    assert together.isfinite().all()
    for i in range(4):
        alone = net(x_t[i : i + 1], t[i : i + 1], {name: value[i : i + 1] for name, value in cond.items()})
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_padding_of_tokens_says_nothing() -> None:
    net, cond, given = network(), prepared(3), (torch.randn(3, 2, 128), torch.rand(3))
    longer = torch.cat([cond["text"], torch.full((3, 5, 6), NAN)], dim=1)
    torch.testing.assert_close(net(*given, {**cond, "text": longer}), net(*given, cond), rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_from_a_batch_where_some_is_given() -> None:
    net, cond, target = network(), prepared(4), torch.randn(4, 2, 128)
    for name in cond:
        cond[name][0] = dropped(cond[name])[0]
    (net(torch.randn(4, 2, 128), torch.rand(4), cond) - target).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_under_autocast_it_is_nearly_the_same() -> None:
    net, cond, given = network(), prepared(3), (torch.randn(3, 2, 128), torch.rand(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(*given, cond).float()
    full = net(*given, cond)
    assert (half - full).square().mean() < 0.05**2 * full.square().mean()


def test_a_network_with_every_kind_is_compiled_in_one_graph() -> None:
    net, cond, given = network(), prepared(3), (torch.randn(3, 2, 128), torch.rand(3))
    whole = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(*given, cond), net(*given, cond))


def test_a_frame_is_heard_where_it_lies() -> None:
    options: dict[str, Any] = {"patch_size": 4, "widths": (16,), "factors": (), "num_blocks": 1, "attention": False}
    net = wake(UNet1d(2, {"mel": KINDS["mel"]}, **options, cond_width=32))
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # it looks at the whole signal
    frames, x_t = prepared(1, 640)["mel"], torch.randn(1, 2, 640)
    changed = frames.clone()
    changed[:, :, 10] += 1  # samples 320 to 352
    apart = (net(x_t, torch.ones(1), {"mel": changed}) - net(x_t, torch.ones(1), {"mel": frames})).abs().sum((0, 1))
    centre = (apart * (torch.arange(640) + 0.5)).sum() / apart.sum()
    assert abs(centre - 336) < 32
    assert apart[:160].max() == 0


def test_frames_of_several_rates_are_summed_at_the_finest() -> None:
    slow, fast = torch.randn(2, 3, 4), torch.randn(2, 3, 8)
    conditions = Conditions({name: Mel(16_000, 1, 3, 64, 32) for name in ("slow", "fast")}, 3)
    conditions.embedders.update({"slow": nn.Identity(), "fast": nn.Identity()})
    torch.testing.assert_close(conditions({"slow": slow, "fast": fast}).frames, along_time(slow, 8) + fast)


def test_frames_keep_their_place_along_time() -> None:
    """A slope stays a slope, each value in the middle of its part."""
    slope = torch.arange(8.0).add(0.5).expand(1, 1, 8)
    stretched = along_time(slope, 32)
    torch.testing.assert_close(stretched[0, 0, 2:-2], (torch.arange(32.0)[2:-2] + 0.5) / 4)


def test_numbers_have_their_place_in_the_range_and_nan_stays() -> None:
    got = Number(-10, 30).prepare(torch.tensor([-20.0, -10.0, 0.0, 30.0, 99.0, NAN]), "cpu")
    torch.testing.assert_close(got, torch.tensor([0, 0, 0.25, 1, 1, NAN]), equal_nan=True)


def test_a_thousandth_of_the_range_can_be_told_apart() -> None:
    conditions = Conditions({"seconds": Number(0, 512)}, 32)
    rows = conditions({"seconds": Number(0, 512).prepare(torch.arange(0, 512, 0.512), "cpu")}).vector
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance + torch.eye(len(rows))).min() > 1e-3


def test_labels_may_come_as_numbers() -> None:
    got = Label(8).prepare(torch.tensor([0.0, 7.0, NAN]), "cpu")
    assert got.dtype == torch.int64
    assert got.tolist() == [0, 7, -1]


@pytest.mark.parametrize(
    ("condition", "values", "message"),
    [
        (Label(3), torch.tensor([0, 3]), r"label: expected -1 \(none\) to 2, got \[0, 3\]"),
        (Label(3), ["kick"], "label: expected numbers, got words such as 'kick'"),
        (Number(0, 1), ("1",), "number: expected numbers, got words such as '1'"),
        (Embedding(6), torch.zeros(2, 6), r"embedding: expected \[B, S, 6\] \(tokens\), got \[2, 6\]"),
        (Embedding(6), torch.zeros(2, 3, 7), r"embedding: expected \[B, S, 6\] \(tokens\), got \[2, 3, 7\]"),
        (Embedding(6, False), torch.zeros(2, 3, 6), r"embedding: expected \[B, 6\] \(vector\), got \[2, 3, 6\]"),
    ],
)
def test_values_that_do_not_fit_are_refused(condition: Condition, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        condition.prepare(values, "cpu")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Label(-1), "num_classes: expected 0 or more, got -1"),
        (lambda: Number(1, 1), r"high: expected a number above low \(1\), got 1"),
        (lambda: Conditions({"text.npy": Embedding(4)}, 8), "'text.npy' cannot be a name; .* `field: text.npy`"),
        (lambda: Conditions({"keys": Number(0, 1)}, 8), "'keys' cannot be a name"),
        (lambda: UNet1d(1, {"text": Embedding(4)}, attention=False), r"attention: expected true for tokens \(text\)"),
    ],
)
def test_conditions_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_is_read_by_field_and_the_rest_left_out() -> None:
    conditions = Conditions({"label": None, "none": Label(0), "text": KINDS["text"], "seconds": KINDS["seconds"]}, 8)
    batch: Mapping[str, Any] = {"text.npy": torch.ones(2, 3, 6), "seconds": torch.ones(2), "caption": ("a", "b")}
    cond = conditions.read(batch, "cpu")
    assert {name: list(value.shape) for name, value in cond.items()} == {"text": [2, 3, 6], "seconds": [2]}
    with pytest.raises(ValueError, match=r"text: expected the data to have 'text.npy', it has caption, seconds; add"):
        conditions.read({"seconds": torch.ones(2), "caption": ("a", "b")}, "cpu")


def test_what_a_user_leaves_out_is_not_given() -> None:
    conditions = Conditions(KINDS, 8)
    cond = conditions.given({"seconds": [5, NAN], "text": torch.ones(2, 1, 6)}, 2, "cpu")
    torch.testing.assert_close(cond["seconds"], torch.tensor([0.5, NAN]), equal_nan=True)
    for name in set(KINDS) - {"seconds", "text"}:
        assert torch.equal(cond[name].nan_to_num(7), dropped(cond[name]).nan_to_num(7))
        assert len(cond[name]) == 2
    assert all(tensor.isfinite().all() for tensor in tensors(conditions(cond)))
    with pytest.raises(ValueError, match="this model has no condition 'tempo'; it has: caption, label"):
        conditions.given({"tempo": [1]}, 1, "cpu")
    with pytest.raises(ValueError, match="cond: expected 2 values of seconds, one per sample, got 1"):
        conditions.given({"seconds": [1]}, 2, "cpu")


def test_the_mean_of_the_tokens_that_there_are_is_heard_as_a_vector() -> None:
    conditions, tokens = wake(Conditions({"text": Embedding(6)}, 8)), torch.randn(2, 4, 6)
    tokens[0, 1:3] = NAN
    embedded = conditions({"text": tokens})
    torch.testing.assert_close(embedded.vector[0], embedded.tokens[0, [0, 3]].mean(0))
    torch.testing.assert_close(embedded.vector[1], embedded.tokens[1].mean(0))
