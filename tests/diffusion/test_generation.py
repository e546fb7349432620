"""generate(): the right data, and a sample that depends on its own seed and condition only."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.generation import Sampler, generate
from audio_diffusion.diffusion.grids import trailing
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.diffusion.schedules import linear
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc

PROCESS = Diffusion(linear(), Epsilon())
SHAPE = (2, 300)
SAMPLERS = pytest.mark.parametrize(
    "sampler",
    [
        partial(ddpm, num_steps=50),
        partial(ddim, num_steps=20),
        partial(unipc, num_steps=12),
        partial(dpmpp, num_steps=20, eta=1.0),
        partial(heun, num_steps=10, churn=5.0),
    ],
)


@pytest.fixture
def net(exact_net: Callable[..., Net]) -> Net:
    return exact_net(PROCESS.schedule, [-2.0, 1.0, 3.0], 0.5)


def labels(*values: int) -> dict[str, Tensor]:
    return {"label": torch.tensor(values)}


@SAMPLERS
def test_a_sample_is_the_same_in_any_batch(sampler: Sampler, net: Net) -> None:
    together = generate(net, PROCESS, sampler, SHAPE, [11, 12, 13, 14], labels(0, 1, 2, -1), guidance_scale=2.0)
    assert together.shape == (4, *SHAPE)
    assert together.dtype == torch.float32
    alone = [
        generate(net, PROCESS, sampler, SHAPE, [seed], labels(label), guidance_scale=2.0)
        for seed, label in ((11, 0), (12, 1), (13, 2), (14, -1))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    mixed = generate(net, PROCESS, sampler, SHAPE, [14, 99, 12], labels(-1, 0, 1), guidance_scale=2.0)
    torch.testing.assert_close(mixed[[0, 2]], together[[3, 1]], rtol=1e-5, atol=1e-5)


@SAMPLERS
def test_seeds_make_different_samples_of_the_same_class(sampler: Sampler, net: Net) -> None:
    x0 = generate(net, PROCESS, sampler, SHAPE, [1, 2, 1], labels(1, 1, 1))
    assert torch.equal(x0[0], x0[2])
    assert torch.corrcoef(torch.stack([x0[0].flatten(), x0[1].flatten()]))[0, 1].abs() < 0.2


def test_each_label_gets_its_own_data(net: Net) -> None:
    x0 = generate(net, PROCESS, partial(ddim, num_steps=100), (1, 5000), [1, 2, 3, 4], labels(0, 1, 2, -1))
    torch.testing.assert_close(x0.mean((1, 2)), torch.tensor([-2.0, 1.0, 3.0, 0.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(x0.std((1, 2)), torch.full((4,), 0.5), rtol=0.05, atol=0)


def test_guidance_pushes_away_from_the_unconditional(net: Net) -> None:
    """Of two Gaussians of one std, the guided estimate is that of mean = scale·mean: the class's, overshot."""
    sampler = partial(ddim, num_steps=100)
    x0 = generate(net, PROCESS, sampler, (1, 5000), [1, 2], labels(0, 1), guidance_scale=3.0)
    torch.testing.assert_close(x0.mean((1, 2)), torch.tensor([-6.0, 3.0]), rtol=0.02, atol=0)
    nothing = generate(net, PROCESS, sampler, (1, 5000), [1, 2], labels(0, 1), guidance_scale=0.0)
    torch.testing.assert_close(nothing.mean((1, 2)), torch.zeros(2), rtol=0, atol=0.05)


@SAMPLERS
def test_global_random_state_is_neither_read_nor_changed(sampler: Sampler, net: Net) -> None:
    outcomes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        outcomes.append(generate(net, PROCESS, sampler, SHAPE, [7], labels(0)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*outcomes)


def test_start_noise_is_not_drawn_again_on_the_way() -> None:
    """The chain's noises must be fresh: told x0 = 0, the first step's noise shows beside the start's."""
    seen: list[Tensor] = []

    def net(x_t: Tensor, t: Tensor, cond: dict) -> Tensor:
        seen.append(x_t.clone())
        return x_t / PROCESS.schedule.alpha_sigma(t)[1][:, None, None]  # x0 = 0

    generate(net, PROCESS, partial(ddpm, num_steps=2), (1, 5000), [3], {})
    start, fresh = (x.flatten() for x in seen)
    assert start.std().item() == pytest.approx(1, rel=0.05)
    weight = (start * fresh).mean() / start.square().mean()  # what eq. 7 leaves of the start
    bar_t, bar_s = PROCESS.schedule.alpha_bar(torch.tensor([1.0, 0.5])).tolist()
    assert weight.item() == pytest.approx((bar_t / bar_s) ** 0.5 * (1 - bar_s) / (1 - bar_t), abs=0.06)


def test_no_graph_is_kept_and_steps_are_told() -> None:
    gain, told = torch.ones(1, requires_grad=True), []
    x0 = generate(
        lambda x_t, t, cond: gain * x_t,
        PROCESS,
        partial(ddim, num_steps=4, grid=trailing),
        SHAPE,
        [0],
        {},
        on_step=lambda t, x0: told.append((t, x0)),
    )
    assert not x0.requires_grad
    assert [t for t, _ in told] == [1.0, 0.75, 0.5, 0.25]
    torch.testing.assert_close(told[-1][1], x0)


@pytest.mark.parametrize(
    ("scale", "message"),
    [(-1.0, "guidance_scale: expected 0 or more"), (2.0, "guidance needs a condition, and the model has none")],
)
def test_bad_guidance_is_refused(net: Net, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(net, PROCESS, ddim, SHAPE, [0], {}, guidance_scale=scale)
