"""DiffWave: the published sizes and parts, its conditions, and that all of it learns."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from audio_diffusion.cli import config
from audio_diffusion.networks.conditions.condition import Embedding, Label
from audio_diffusion.networks.conditions.mel import Mel
from audio_diffusion.networks.diffwave import DiffWave, StepEmbedding, Stretch, Upsampler
from audio_diffusion.training.ema import EmaWeights

SMALL: dict[str, Any] = {"num_layers": 4, "width": 8, "dilation_cycle": 3, "cond_width": 10, "upsample": (4, 8)}
MEL = Mel(16000, 1, n_mels=10, n_fft=64, hop=32, embed=False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(conditions: Any = None, channels: int = 1, **options: Any) -> DiffWave:
    """A small one that is past its start, where it says zero."""
    net = DiffWave(channels, conditions or {}, **{**SMALL, **options})
    nn.init.normal_(net.last.weight)
    return net


def ask(net: DiffWave, x: Tensor, cond: Any = None) -> Tensor:
    return net(x, torch.full((len(x),), 0.3), cond or {})


@pytest.mark.parametrize(
    ("overrides", "published", "count"),
    [
        # beside what is published: a learnt mel, one number a band, for "not given"
        (["experiment=vocoder"], 2.64e6, 2_637_305 + 80),
        (["experiment=vocoder", "model=diffwave_large"], 6.91e6, 6_914_297 + 80),
        (["experiment=sc09"], 24.1e6, 24_071_681),
    ],
)
def test_it_has_as_many_parameters_as_published(overrides: list[str], published: float, count: int) -> None:
    with initialize_config_dir(str(config.CONFIG_DIR), version_base="1.3"):
        plain = config.to_plain(compose("train", overrides=overrides))
    parameters = sum(p.numel() for p in config.build(plain["model"], "model").parameters())
    assert parameters == count
    assert float(f"{parameters:.2e}" if published < 1e7 else f"{parameters:.1e}") == pytest.approx(published, rel=5e-3)


def test_t_is_embedded_as_published() -> None:
    seen = []
    embedding = StepEmbedding(scale=50)
    embedding.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert embedding(torch.tensor([7 / 50])).shape == (1, 512)
    angles = [10 ** (4 * j / 63) * 7 for j in range(64)]
    expected = torch.tensor([[f(a) for f in (math.sin, math.cos) for a in angles]])
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0.05)  # float32 has 0.03 at 7e4 radians


def test_it_says_zero_at_first_and_keeps_the_shape() -> None:
    x = torch.randn(2, 2, 37)
    y = ask(DiffWave(2, **SMALL), x)
    assert torch.equal(y, torch.zeros_like(x))
    assert ask(small(channels=2), x).shape == x.shape


def test_it_sees_as_far_as_its_dilations_reach_either_way() -> None:
    x = torch.randn(1, 1, 101, requires_grad=True)
    ask(small(), x)[0, 0, 50].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].nonzero().flatten()
    reach = 1 + 2 + 4 + 1
    assert (seen.min(), seen.max()) == (50 - reach, 50 + reach)


def test_a_frame_is_heard_in_the_middle_of_its_hop() -> None:
    upsampler = Upsampler((4, 8))
    for parameter in upsampler.parameters():
        nn.init.ones_(parameter)
    frames = torch.zeros(1, 5, 9)
    frames[0, 2, 4] = 1
    with torch.no_grad():
        made = upsampler(frames) - upsampler(torch.zeros_like(frames))
    assert made.shape == (1, 5, 9 * 32)
    centre = (made[0, 2] * (torch.arange(9 * 32) + 0.5)).sum() / made[0, 2].sum()
    assert centre == pytest.approx(4.5 * 32, abs=0.01)
    torch.testing.assert_close(made[0, 1], made[0, 3])  # bands touch their neighbours alike


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_stretching_is_a_transposed_convolution(factor: int) -> None:
    torch.manual_seed(0)
    stretch, bands = Stretch(factor).double(), torch.randn(2, 5, 7).double()
    for parameter in stretch.parameters():
        nn.init.normal_(parameter)
    sizes = {"stride": (1, factor), "padding": (1, factor // 2)}
    expected = nn.functional.conv_transpose2d(bands[:, None], stretch.weight, stretch.bias, **sizes)[:, 0]
    torch.testing.assert_close(stretch(bands), expected, rtol=0, atol=1e-12)


def test_the_upsampler_starts_as_linear_interpolation() -> None:
    frames = torch.rand(2, 5, 9)
    made = Upsampler((4,))(frames)
    expected = nn.functional.interpolate(frames, scale_factor=4, mode="linear")
    torch.testing.assert_close(made[..., 2:-2], expected[..., 2:-2])  # beyond the ends there is nothing


def test_every_part_learns() -> None:
    net = small({"mel": MEL, "label": Label(3)})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 1, 128)
    cond = net.conditions.given({"mel": 0.1 * torch.randn(1, 1, 128).expand(2, 1, 128), "label": [1, 2]}, 2, "cpu")
    for given in (cond, net.conditions.given({}, 2, "cpu")):
        ask(net, x, given).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("condition", "one", "other"),
    [
        (Label(3), [1], [2]),
        (MEL, torch.randn(1, 1, 128), torch.zeros(1, 1, 128)),
        (Embedding(6), torch.randn(1, 5, 6), torch.randn(1, 2, 6)),
    ],
    ids=["vector", "frames", "tokens"],
)
def test_what_it_is_told_changes_what_it_says(condition: Any, one: Any, other: Any) -> None:
    net, x = small({"c": condition}), torch.randn(1, 1, 128)
    told = [ask(net, x, net.conditions.given(given, 1, "cpu")) for given in ({"c": one}, {"c": other}, {})]
    assert not torch.allclose(told[0], told[1])
    assert not torch.allclose(told[0], told[2])


def test_one_that_is_told_nothing_is_as_one_that_is_told_it_is_not_given_any_mel() -> None:
    net, x = small({"mel": MEL}), torch.randn(1, 1, 128)
    frames = torch.full((1, 10, 4), torch.nan)  # a mel that was dropped has its frames still
    torch.testing.assert_close(ask(net, x, {"mel": frames}), ask(net, x, net.conditions.given({}, 1, "cpu")))


def test_averaged_compiled_and_bfloat16_it_says_the_same() -> None:
    net, x = small({"mel": MEL}, num_layers=2), torch.randn(1, 1, 128)
    cond = net.conditions.given({"mel": torch.randn(1, 1, 128)}, 1, "cpu")
    expected = ask(net, x, cond).detach()
    ema = EmaWeights(net)
    ema.update(net)
    torch.testing.assert_close(ask(ema.net, x, cond), expected)
    torch.testing.assert_close(ask(torch.compile(net, backend="eager", fullgraph=True), x, cond), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = ask(net, x, cond).float() - expected
    assert error.abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers: expected at least 1, got 0"),
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"upsample": (16, 5)}, r"upsample: expected even numbers, got \[16, 5\]"),
        ({"upsample": ()}, r"upsample: expected even numbers, got \[\]"),
        ({"embedding_scale": 0}, "embedding_scale: expected a positive number, got 0"),
        ({"cond_width": 12}, "cond_width: expected 10, the rows of a mel that is not embedded, got 12; or set model"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffWave(1, {"mel": MEL}, **{**SMALL, **options})


@pytest.mark.parametrize("shape", [(1, 2, 128), (1, 1, 100)])
def test_audio_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x_t: expected \[B, 1, a multiple of 32\], got"):
        ask(small({"mel": MEL}), torch.zeros(shape), {"mel": torch.zeros(1, 10, 4)})


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_it_trains_on_two_ranks_and_can_be_sharded(
    strategy: str, launch: Callable, tiny: list[str], drum_shards: Path, tmp_path: Path
) -> None:
    small = ["experiment=vocoder", "model.num_layers=2", "model.width=8", "audio.num_samples=1024"]
    options = [o for o in tiny if not o.startswith(("model.", "audio.", "trainer="))]
    run = launch(
        tmp_path, "train.py", *small, *options, f"data.train={drum_shards}", "name=two", "max_steps=3",
        f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", ranks=2,
    )  # fmt: skip
    assert run.wait() == [0, 0], run.text
    assert (tmp_path / "runs/two/checkpoints/step_00000003.ckpt").is_file()
