"""The U-Net's contract: shapes, conditions, errors, and that all of it learns. No private part is looked at."""

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from audio_diffusion.cli.config import CONFIG_DIR
from audio_diffusion.inference.targets import build
from audio_diffusion.networks.conditions.condition import Label
from audio_diffusion.networks.unet1d import FineBands, UNet1d

SMALL: dict[str, Any] = {"patch_size": 4, "widths": (16, 64), "factors": (2,), "num_blocks": 1, "cond_width": 32}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(channels: int = 1, num_classes: int = 3, **options: Any) -> UNet1d:
    return UNet1d(channels, {"label": Label(num_classes)}, **{**SMALL, **options})


def wake(net: nn.Module) -> nn.Module:
    """Moves every weight off its start, so that the parts which start at zero take part."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def inputs(batch: int = 3, channels: int = 1, length: int = 32) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x_t, t and cond with three different labels."""
    return torch.randn(batch, channels, length), torch.rand(batch), {"label": torch.arange(batch) % 3}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(
    ("options", "multiple"),
    [
        ({}, 8),
        ({"attention": False}, 8),
        ({"num_blocks": 2, "patch_size": 2}, 4),
        ({"widths": (16,), "factors": (), "attention": False}, 4),
        ({"widths": [8, 24, 64], "factors": [4, 2]}, 32),
        ({"widths": (64, 32), "attention": False, "patch_size": 16}, 32),
        ({"fine_bands": True}, 8),
        ({"fine_bands": True, "fine_features": True}, 8),
    ],
)
def test_output_has_the_shape_of_the_input(
    channels: int, num_classes: int, options: dict[str, Any], multiple: int
) -> None:
    net = wake(small(channels, num_classes, **options))
    assert net.multiple == multiple
    for batch, length in ((1, multiple), (3, 2 * multiple), (2, 7 * multiple)):
        x_t, t, cond = inputs(batch, channels, length)
        out = net(x_t, t, cond if num_classes else {})
        assert out.shape == x_t.shape
        assert out.dtype == x_t.dtype
        assert out.isfinite().all()
        assert out.std() > 0


def test_a_fresh_network_returns_x_t() -> None:
    """A perfect reconstruction by the filter bank, up to both ends; two features per sample of a window are enough."""
    net = small(widths=(16, 64))  # windows of 8 samples
    x_t, t, cond = inputs(length=64)
    torch.testing.assert_close(net(x_t, t, cond), x_t, rtol=0, atol=1e-5)
    stereo = small(channels=2, widths=(32, 64))
    x_t, t, cond = inputs(channels=2, length=64)
    torch.testing.assert_close(stereo(x_t, t, cond), x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("patch_size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("width", [8, 24, 64, 128, 256])
def test_a_network_of_any_size_starts_as_the_identity(channels: int, patch_size: int, width: int) -> None:
    options: dict[str, Any] = {"num_blocks": 1, "cond_width": 8, "attention": False, "fine_bands": True}
    net = UNet1d(channels, {}, patch_size, (width,), (), fine_features=channels % 2 == 0, **options)
    x_t = torch.randn(2, channels, 3 * patch_size)
    torch.testing.assert_close(net(x_t, torch.rand(2), {}), x_t, rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("preset", sorted(p.stem for p in (CONFIG_DIR / "model").glob("*.yaml")))
def test_every_preset_starts_alike_for_any_number_of_channels(preset: str, channels: int) -> None:
    """The U-Net as the identity, of which white noise has an error of 0; DiffWave, as published, with 0."""
    with initialize_config_dir(str(CONFIG_DIR.absolute()), version_base="1.3"):
        overrides = [f"model={preset}", "condition=[]", f"audio.channels={channels}", "name=x", "classes=[]"]
        cfg = compose("train", overrides=overrides)
    net: Any = build(OmegaConf.to_container(cfg.model, resolve=True), "model")  # type: ignore[arg-type]
    noise = torch.randn(1, channels, 2 * max(net.multiple, 16))
    expected = noise if isinstance(net, UNet1d) else torch.zeros_like(noise)
    with torch.no_grad():
        assert (net(noise, torch.ones(1), {}) - expected).square().mean() < 1e-8


@pytest.mark.parametrize(("channels", "patch_size", "width"), [(2, 16, 64), (2, 8, 24), (8, 8, 16)])
def test_every_band_learns(channels: int, patch_size: int, width: int) -> None:
    """Those beyond the transform as well, which add nothing at first."""
    net = UNet1d(channels, {}, patch_size, (width,), (), num_blocks=1, cond_width=8, attention=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0)
    before, x_t = net.synthesis.weight.detach().clone(), torch.randn(4, channels, 4 * patch_size)
    for _ in range(2):
        optimizer.zero_grad()
        (net(x_t, torch.rand(4), {}) - torch.randn_like(x_t)).square().mean().backward()
        optimizer.step()
    assert (net.synthesis.weight != before).flatten(1).any(1).all()


def test_weights_of_a_narrower_bank_are_loaded_as_they_are() -> None:
    """Checkpoints of before have ``widths[0]`` bands, however few that is: the network takes on their number."""
    options: dict[str, Any] = {"patch_size": 8, "widths": (16,), "factors": (), "attention": False}
    old = small(channels=2, **options)
    old._take_bands(8)
    narrow, net = small(channels=2, **options), small(channels=2, **options)
    narrow._take_bands(16)
    narrow = wake(narrow)
    assert narrow.state_dict()["analysis.weight"].shape[0] == 16
    assert net.state_dict()["analysis.weight"].shape[0] == 32
    before = dict(net.named_parameters())
    net.load_state_dict(narrow.state_dict())
    given = inputs(channels=2)
    assert torch.equal(net(*given), narrow(*given))
    optimizer = torch.optim.AdamW(net.parameters())
    net(*given).square().mean().backward()
    optimizer.step()
    assert before.keys() == dict(net.named_parameters()).keys()
    with pytest.raises(RuntimeError, match=r"size mismatch for analysis\.weight"):
        small(channels=2, **options).load_state_dict(old.state_dict())


@pytest.mark.parametrize("channels", [1, 2])
def test_fine_bands_keep_a_signal_whose_gates_are_open(channels: int) -> None:
    bank, x = FineBands(channels, 16, 8), torch.randn(3, channels, 80)
    assert torch.equal(bank(x, torch.randn(3, 8, 5)), torch.zeros_like(x))
    nn.init.ones_(bank.gate.bias)
    torch.testing.assert_close(bank(x, torch.randn(3, 8, 5)), x, rtol=0, atol=1e-4)


def test_fine_bands_tell_a_tone_from_the_noise_around_it() -> None:
    """Gates on one band: of white noise little is left, of a tone in its middle all."""
    bank, time = FineBands(1, 64, 8), torch.arange(64 * 20)
    with torch.no_grad():
        bank.gate.bias[2 * 9 : 2 * 12] = 1.0  # cosines and sines of the bands 9, 10, 11
    tone, noise = torch.sin(torch.pi / 64 * 10.5 * time)[None, None], torch.randn(1, 1, 64 * 20)
    h = torch.randn(1, 8, 20)
    inside = slice(128, -128)
    assert (bank(tone, h) - tone)[..., inside].square().mean() < 0.01 * tone.square().mean()
    assert bank(noise, h)[..., inside].square().mean() < 0.07 * noise.square().mean()


def test_fine_features_see_the_power_of_a_tone_and_not_its_phase() -> None:
    """The features of a tone's band, in the middle of the signal, are alike for all phases; those of another tone are
    not."""
    bank, time = FineBands(1, 64, 8, features=True), torch.arange(64 * 20)
    with torch.no_grad():
        bank.enter.weight[:, : 2 * 64] = 0  # type: ignore[union-attr]  # only the logarithm of the power
    tones = [
        torch.sin(torch.pi / 64 * band * time + phase)[None, None] for band, phase in ((10.5, 0), (10.5, 1), (30, 0))
    ]
    one, shifted, other = (bank.read(tone)[..., 2:-2] for tone in tones)
    assert one.shape == (1, 8, 16)
    assert (one - shifted).square().mean() < 0.1 * (one - other).square().mean()


def test_fine_features_without_fine_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="fine_features: expected false without fine_bands, got true"):
        small(fine_features=True)


@pytest.mark.parametrize("shape", [(2, 1, 33), (2, 1, 36), (2, 2, 32), (2, 1, 7)])
def test_a_wrong_signal_is_refused(shape: tuple[int, ...]) -> None:
    message = r"x_t: expected \[B, 1, a multiple of 8\], got " + str(list(shape)).replace("[", r"\[")
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape), torch.rand(2), {"label": torch.zeros(2, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("num_classes", "given", "message"),
    [
        (0, ["label"], r"cond: this network expects none, got \['label'\]"),
        (3, [], r"cond: this network expects \['label'\], got none"),
        (3, ["label", "pitch"], r"cond: this network expects \['label'\], got \['label', 'pitch'\]"),
        (3, ["lable"], r"cond: this network expects \['label'\], got \['lable'\]"),
    ],
)
def test_wrong_conditions_are_refused(num_classes: int, given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(1, num_classes)(torch.zeros(2, 1, 32), torch.rand(2), {name: torch.zeros(2).long() for name in given})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": (2, 2)}, r"factors: expected one fewer than widths \(1\), got 2"),
        ({"factors": ()}, r"factors: expected one fewer than widths \(1\), got 0"),
        ({"patch_size": 5}, "patch_size: expected an even number of samples, at least 2, got 5"),
        ({"patch_size": 0}, "patch_size: expected an even number of samples, at least 2, got 0"),
        ({"widths": (16, 20)}, r"widths: expected multiples of 8, got \[16, 20\]"),
        ({"widths": (0, 64)}, r"widths: expected multiples of 8, got \[0, 64\]"),
        ({"factors": (3,)}, r"factors: expected even numbers, got \[3\]"),
        ({"factors": (0,)}, r"factors: expected even numbers, got \[0\]"),
        ({"widths": (16, 32)}, "widths: expected the last to be a multiple of 64, the width of a head of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_every_label_and_its_absence_say_something_else() -> None:
    net = wake(small())
    x_t, t = torch.randn(1, 1, 32).expand(4, 1, 32), torch.full((4,), 0.5)
    out = net(x_t, t, {"label": torch.tensor([-1, 0, 1, 2])}).flatten(1)
    assert (torch.cdist(out, out) + torch.eye(4)).min() > 1e-3


def test_time_matters() -> None:
    net = wake(small())
    x_t, t = torch.randn(1, 1, 32).expand(4, 1, 32), torch.tensor([0.001, 0.1, 0.5, 1.0])
    out = net(x_t, t, {"label": torch.zeros(4, dtype=torch.int64)}).flatten(1)
    assert (torch.cdist(out, out) + torch.eye(4)).min() > 1e-3


def test_condition_has_no_say_before_training() -> None:
    """What conditions the network starts at zero: its first output depends on x_t alone."""
    net, (x_t, t, cond) = small(), inputs()
    first = net(x_t, t, cond)
    assert first.std() > 0
    torch.testing.assert_close(net(x_t, t.flip(0), {"label": cond["label"].flip(0)}), first)


def test_a_sample_does_not_see_its_batch() -> None:
    net, (x_t, t, cond) = wake(small(2)), inputs(3, 2)
    together = net(x_t, t, cond)
    for i in range(3):
        alone = net(x_t[i : i + 1], t[i : i + 1], {"label": cond["label"][i : i + 1]})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_every_output_sample_sees_the_whole_signal() -> None:
    """Attention at the coarsest level reaches from end to end."""
    net, (x_t, t, cond) = wake(small()), inputs(1, 1, 256)
    x_t.requires_grad_()
    for place in (0, 255):
        (gradient,) = torch.autograd.grad(net(x_t, t, cond)[0, 0, place], x_t)
        assert gradient.abs().min() > 0


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("attention", [False, True])
def test_gradient_reaches_every_parameter_after_a_few_steps(num_classes: int, attention: bool) -> None:
    """At first the parts behind a zero get none: the gates' weights, and before them those of each block's end."""
    net = small(2, num_classes, attention=attention, fine_bands=True, fine_features=attention)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x_t, t, cond = inputs(4, 2, 64)
    for _ in range(4):
        optimizer.zero_grad()
        (net(x_t, t, cond if num_classes else {}) - torch.randn_like(x_t)).square().mean().backward()
        optimizer.step()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_gradient_is_the_slope() -> None:
    """Each parameter's gradient against the difference of the loss along a random direction: none is cut on its way."""
    net, (x_t, t, cond) = wake(small(fine_bands=True, fine_features=True)).double(), inputs()
    loss = lambda: net(x_t.double(), t, cond).square().mean()  # noqa: E731
    loss().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        along, kept, ends = torch.randn_like(parameter), parameter.detach().clone(), []
        for step in (-1e-5, 1e-5):
            with torch.no_grad():
                parameter.copy_(kept + step * along)
                ends.append(loss().item())
        with torch.no_grad():
            parameter.copy_(kept)
        slope = (parameter.grad * along).sum().item()
        assert (ends[1] - ends[0]) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-6), name


def test_bfloat16_autocast_says_nearly_the_same() -> None:
    net, (x_t, t, cond) = wake(small()), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x_t, t, cond)
        out.float().square().mean().backward()
    full = net(x_t, t, cond)
    assert (out.float() - full).square().mean() < 0.05**2 * full.square().mean()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_weights_say_everything() -> None:
    """A network built anew and given the state dict does the same: there is no hidden state."""
    net, other, given = wake(small()), small(), inputs()
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(*given), other(*given))
