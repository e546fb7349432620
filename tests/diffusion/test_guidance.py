"""Classifier-free guidance: the formula, its special scales, and what it costs."""

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.guidance import Guidance, drop
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Cond, Diffusion
from audio_diffusion.diffusion.schedules import linear

PROCESS = Diffusion(linear(), Epsilon())
LABEL = {"label": torch.tensor([0, 3, 1, 2])}
NOTHING = {"label": torch.full((4,), -1)}
T = torch.tensor([0.1, 0.4, 0.7, 1.0])


def x_t() -> Tensor:
    return torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))


class Net:
    """A network whose output depends on everything it is given; remembers the size of each call."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.batches.append(len(x_t))
        label = cond["label"][:, None, None]
        return torch.tanh(x_t * (label + 2)) + t[:, None, None] - 0.3 * label


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.5, 1.0, 2.0, 7.5])
def test_estimates_are_moved_away_from_the_unconditional(scale: float) -> None:
    """noise = noise_uncond + scale·(noise_cond - noise_uncond), and x0 alike: together they still make up x_t."""
    guided = Guidance(scale).denoiser(PROCESS, Net(), LABEL)(x_t(), T)
    with_label, without = (PROCESS.denoiser(Net(), cond)(x_t(), T) for cond in (LABEL, NOTHING))
    for got, cond, uncond in zip(guided, with_label, without, strict=True):
        torch.testing.assert_close(got, uncond + scale * (cond - uncond), rtol=1e-4, atol=1e-4)
    alpha, sigma = (v[:, None, None] for v in PROCESS.schedule.alpha_sigma(T))
    torch.testing.assert_close(alpha * guided.x0 + sigma * guided.noise, x_t(), rtol=1e-4, atol=1e-4)


def test_scale_zero_forgets_the_label() -> None:
    other = {"label": torch.tensor([1, 1, 1, 1])}
    one, two = (Guidance(0.0).denoiser(PROCESS, Net(), cond)(x_t(), T) for cond in (LABEL, other))
    torch.testing.assert_close(one.x0, two.x0)
    torch.testing.assert_close(one.x0, PROCESS.denoiser(Net(), NOTHING)(x_t(), T).x0)


@pytest.mark.parametrize(("scale", "batch"), [(1.0, 4), (1, 4), (0.0, 8), (3.0, 8)])
def test_one_call_of_the_network_doubled_only_where_needed(scale: float, batch: int) -> None:
    net = Net()
    denoise = Guidance(scale).denoiser(PROCESS, net, LABEL)
    assert net.batches == []
    denoise(x_t(), T)
    denoise(x_t(), T)
    assert net.batches == [batch, batch]


def test_every_condition_is_dropped_together() -> None:
    seen: list[Cond] = []
    net = lambda x_t, t, cond: (seen.append(cond), x_t)[1]  # noqa: E731
    Guidance(2.0).denoiser(PROCESS, net, {**LABEL, "pitch": torch.ones(4, 2)})(x_t(), T)
    assert seen[0]["label"].tolist() == [0, 3, 1, 2, -1, -1, -1, -1]
    assert seen[0]["pitch"][:4].eq(1).all()
    assert seen[0]["pitch"][4:].isnan().all()


def test_without_conditions_scale_one_is_the_plain_model() -> None:
    net = lambda x_t, t, cond: (torch.tanh(x_t), dict(cond) == {} or 1 / 0)[0]  # noqa: E731
    got, plain = Guidance(1.0).denoiser(PROCESS, net, {})(x_t(), T), PROCESS.denoiser(net, {})(x_t(), T)
    assert torch.equal(got.x0, plain.x0)


@pytest.mark.parametrize("cond", [LABEL, {}])
def test_negative_scale_is_refused(cond: Cond) -> None:
    with pytest.raises(ValueError, match=r"guidance_scale: expected 0 or more, got -0\.5"):
        Guidance(-0.5).denoiser(PROCESS, Net(), cond)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"guidance_scale: expected a finite number, got {scale}"):
        Guidance(scale)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_guidance_needs_a_condition(scale: float) -> None:
    with pytest.raises(
        ValueError, match=rf"guidance_scale: got {scale}, but guidance needs a condition, and the model has none"
    ):
        Guidance(scale).denoiser(PROCESS, Net(), {})


def test_drop_takes_the_conditions_of_the_chosen_samples() -> None:
    cond = {"label": torch.tensor([5, 6, 7]), "pitch": torch.ones(3, 2, dtype=torch.int64), "tempo": torch.ones(3)}
    dropped = drop(cond, torch.tensor([True, False, True]))
    assert dropped["label"].tolist() == [-1, 6, -1]
    assert dropped["pitch"].tolist() == [[-1, -1], [1, 1], [-1, -1]]
    assert dropped["tempo"].isnan().tolist() == [True, False, True]
    assert cond["label"].tolist() == [5, 6, 7]  # what was given is left alone
    assert dict(drop({}, torch.tensor([True]))) == {}


# Beyond the scale


@pytest.mark.parametrize("t", [0.3, T], ids=["a number", "each its own"])
def test_guidance_is_confined_to_its_interval(t) -> None:
    net = Net()
    guided = Guidance(3.0, interval=(0.35, 0.75)).denoiser(PROCESS, net, LABEL)
    full, plain = (Guidance(s).denoiser(PROCESS, Net(), LABEL)(x_t(), t) for s in (3.0, 1.0))
    got = guided(x_t(), t)
    if t is T:
        inside = torch.tensor([False, True, True, False])
        torch.testing.assert_close(got.x0[inside], full.x0[inside])
        torch.testing.assert_close(got.x0[~inside], plain.x0[~inside], rtol=1e-4, atol=1e-4)
        assert net.batches == [8]
    else:
        torch.testing.assert_close(got.x0, plain.x0)
        assert net.batches == [4]  # outside it costs no more than none


def test_negative_conditions_are_moved_away_from() -> None:
    negative = {"label": torch.tensor([1, 1, 0, 0])}
    got = Guidance(2.5, negative=negative).denoiser(PROCESS, Net(), LABEL)(x_t(), T)
    good, bad = (PROCESS.denoiser(Net(), cond)(x_t(), T) for cond in (LABEL, negative))
    torch.testing.assert_close(got.noise, bad.noise + 2.5 * (good.noise - bad.noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cond", [LABEL, {}], ids=["label", "unconditional"])
def test_autoguidance_moves_away_from_the_weak_model(cond: Cond) -> None:
    strong = lambda x_t, t, cond: torch.tanh(x_t) + (cond["label"][:, None, None] if cond else 0)  # noqa: E731
    weak = lambda x_t, t, cond: 0.5 * strong(x_t, t, cond)  # noqa: E731
    got = Guidance(2.0, weak=weak).denoiser(PROCESS, strong, cond)(x_t(), T)
    good, bad = (PROCESS.denoiser(net, cond)(x_t(), T) for net in (strong, weak))
    torch.testing.assert_close(got.x0, 2 * good.x0 - bad.x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", [0.0, 0.7, 1.0])
def test_rescale_gives_back_the_standard_deviation(part: float) -> None:
    got = Guidance(5.0, rescale=part).denoiser(PROCESS, Net(), LABEL)(x_t(), T)
    plain, full = (Guidance(s).denoiser(PROCESS, Net(), LABEL)(x_t(), T).x0.std((1, 2)) for s in (1.0, 5.0))
    torch.testing.assert_close(got.x0.std((1, 2)), part * plain + (1 - part) * full, rtol=1e-3, atol=1e-4)
    makes_up_x_t(got, T)


def makes_up_x_t(prediction, t) -> None:
    alpha, sigma = PROCESS.alpha_sigma(t, x_t())
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.noise, x_t(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("t", [0.4, T], ids=["a number", "each its own"])
def test_clipping_bounds_x0(t) -> None:
    free = PROCESS.denoiser(Net(), LABEL)(x_t(), t)
    got = Guidance(clip=0.5).denoiser(PROCESS, Net(), LABEL)(x_t(), t)
    torch.testing.assert_close(got.x0, free.x0.clamp(-0.5, 0.5))
    makes_up_x_t(got, t)
    assert Guidance(clip=1e9).denoiser(PROCESS, Net(), LABEL)(x_t(), t).x0.equal(free.x0)


def test_dynamic_threshold_scales_down_to_the_quantile() -> None:
    """Imagen, section 2.3: s is the quantile of |x0| if over the bound; x0 is clipped to ±s and divided by it."""
    free = PROCESS.denoiser(Net(), LABEL)(x_t(), T).x0
    got = Guidance(clip=0.5, clip_quantile=0.75).denoiser(PROCESS, Net(), LABEL)(x_t(), T).x0
    for sample, made in zip(free, got, strict=True):
        s = max(sample.abs().flatten().sort().values[11].item(), 0.5)  # the 12th of 16
        torch.testing.assert_close(made, sample.clamp(-s, s) * 0.5 / s)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": (0.5, 0.2)}, r"guidance_interval: expected times 0 <= low <= high <= 1, got \[0.5, 0.2\]"),
        ({"rescale": 1.5}, "guidance_rescale: expected 0 to 1, got 1.5"),
        ({"clip": 0.0}, "clip: expected a positive bound"),
        ({"clip_quantile": 0.0}, "clip_quantile: expected 0 < clip_quantile <= 1"),
        ({"negative": LABEL, "weak": Net()}, "negative: a weak model .* expected one of the two"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(2.0, **options)


def test_negative_conditions_are_some_of_those_given() -> None:
    with pytest.raises(ValueError, match=r"negative: expected some of the conditions \['label'\], got \['pitch'\]"):
        Guidance(2.0, negative={"pitch": torch.zeros(4)}).denoiser(PROCESS, Net(), LABEL)
