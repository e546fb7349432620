"""How t is drawn and what errors count, against the papers' formulas."""

import pytest
import torch
from torch import Tensor, nn

from audio_diffusion.diffusion.parameterization import (
    X0,
    EdmPreconditioning,
    Epsilon,
    Parameterization,
    V,
    Velocity,
    predict,
)
from audio_diffusion.diffusion.process import Cond, Diffusion
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, cosine, linear, lowered, zero_terminal_snr
from audio_diffusion.diffusion.weighting import (
    P2,
    Density,
    EdmWeight,
    LogitNormal,
    LogNormal,
    MinSnr,
    Sigmoid,
    Uniform,
    Weight,
)

U = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
SCHEDULES = pytest.mark.parametrize(
    "schedule", [linear(), lowered(linear()), VarianceExploding(), Flow()], ids=["linear", "lowered", "edm", "flow"]
)
DENSITIES = pytest.mark.parametrize("density", [Uniform(), LogitNormal(), LogNormal()], ids=["uniform", "logit", "log"])
SNR = torch.tensor([1e-12, 0.01, 1.0, 4.9, 5.1, 1e3, 1e9], dtype=torch.float64)


@SCHEDULES
@DENSITIES
def test_drawn_times_are_trained_ones_and_keep_the_order_of_u(density: Density, schedule: Schedule) -> None:
    t = density(U, schedule)
    assert t.dtype == torch.float32
    assert (t.diff() >= 0).all()
    assert t.min() >= schedule.first_time * 0.999
    assert t.max() <= 1
    assert torch.isfinite(schedule.log_snr(t[:-1])).all()
    ends = density(torch.tensor([0.0, 1.0]), schedule)
    assert torch.isfinite(ends).all()
    if schedule.num_steps is not None:
        index = t.double() * schedule.num_steps
        assert (index - index.round()).abs().max() < 1e-3


def test_uniform_on_continuous_time() -> None:
    t = Uniform()(U, VarianceExploding())
    torch.testing.assert_close(t, U.float())  # so log sigma is uniform


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7)])
def test_logit_normal_has_its_mean_and_std(mean: float, std: float) -> None:
    logit = torch.logit(LogitNormal(mean, std)(U, Flow()).double())
    assert logit.mean().item() == pytest.approx(mean, abs=0.01)
    assert logit.std().item() == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize("schedule", [VarianceExploding(), lowered(linear())], ids=["edm", "chain"])
def test_log_normal_has_the_mean_and_std_of_log_sigma(schedule: Schedule) -> None:
    level = -0.5 * schedule.log_snr(LogNormal(-1.2, 1.2)(U, schedule).double())
    assert level.mean().item() == pytest.approx(-1.2, abs=0.05)
    assert level.std().item() == pytest.approx(1.2, rel=0.03)


def test_weights_are_the_papers() -> None:
    """Of noise's error; times SNR they are of x0's."""
    of_x0 = SNR * MinSnr(5.0)(SNR)
    torch.testing.assert_close(of_x0, SNR.clamp(max=5))
    torch.testing.assert_close(SNR * MinSnr(4.0, soft=True)(SNR), 4 * SNR / (SNR + 4))
    torch.testing.assert_close(P2(1.0, 0.5)(SNR), 1 / (1 + SNR) ** 0.5)
    sigma = SNR**-0.5
    torch.testing.assert_close(SNR * EdmWeight(0.5)(SNR), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    torch.testing.assert_close(Sigmoid(2.0)(SNR), torch.sigmoid(2.0 - SNR.log()))


WEIGHTS: list[Weight] = [MinSnr(), MinSnr(soft=True), P2(), EdmWeight(), Sigmoid()]
PAIRS: list[tuple[Schedule, Parameterization]] = [
    (lowered(linear()), Epsilon()), (lowered(cosine()), V()), (linear(), X0()), (zero_terminal_snr(linear()), V()),
    (zero_terminal_snr(linear()), X0()), (Flow(), Velocity()), (Flow(), X0()),
    (VarianceExploding(), EdmPreconditioning()),
]  # fmt: skip


@pytest.mark.parametrize("weight", WEIGHTS, ids=["min_snr", "soft", "p2", "edm", "sigmoid"])
@pytest.mark.parametrize(("schedule", "part"), PAIRS)
def test_a_weight_means_the_same_for_every_parameterization(
    weight: Weight, schedule: Schedule, part: Parameterization
) -> None:
    """The weighted loss of an output is the weight times the squared error of the noise it stands for."""
    generator = torch.Generator().manual_seed(0)
    x0, noise, output = torch.randn(3, 6, 1, 8, generator=generator, dtype=torch.float64)
    t = Uniform()(torch.tensor([0.02, 0.1, 0.3, 0.6, 0.9, 0.97]), schedule)
    process = Diffusion(schedule, part, weight=weight)
    loss = process.loss(lambda x_t, t, cond: output, x0, noise, t, {})
    alpha, sigma = schedule.alpha_sigma(t.double())
    x_t = alpha[:, None, None] * x0 + sigma[:, None, None] * noise
    wrong = predict(part, output, x_t, alpha[:, None, None], sigma[:, None, None]).noise - noise
    expected = weight((alpha / sigma).square()) * wrong.square().mean((1, 2))
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=1e-9)


def test_edm_weight_is_what_edm_has_of_itself() -> None:
    x0, noise, output = torch.randn(3, 4, 1, 8, generator=torch.Generator().manual_seed(0))
    t, net = torch.tensor([0.1, 0.4, 0.7, 0.9]), lambda x_t, t, cond: output
    plain = Diffusion(VarianceExploding(), EdmPreconditioning(0.5)).loss(net, x0, noise, t, {})
    weighted = Diffusion(VarianceExploding(), EdmPreconditioning(0.5), weight=EdmWeight(0.5)).loss(
        net, x0, noise, t, {}
    )
    torch.testing.assert_close(plain, weighted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("weight", [None, *WEIGHTS], ids=["none", "min_snr", "soft", "p2", "edm", "sigmoid"])
@DENSITIES
@pytest.mark.parametrize(("schedule", "part"), PAIRS)
def test_every_objective_trains(
    schedule: Schedule, part: Parameterization, density: Density, weight: Weight | None
) -> None:
    """A few steps on constant data: the loss is finite at every time, and falls."""
    torch.manual_seed(0)
    process = Diffusion(schedule, part, density, weight)
    layer = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))

    def net(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return layer(torch.stack([x_t, t[:, None, None].expand_as(x_t)], dim=-1)).squeeze(-1)

    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    t = process.time_of(torch.linspace(0, 1, 64))
    noise, x0 = torch.randn(64, 1, 8), torch.full((64, 1, 8), 0.5)
    losses = []
    for _ in range(5):
        loss = process.loss(net, x0, noise, t, {})
        assert torch.isfinite(loss).all()
        losses.append(loss.mean().item())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(std=0.0), "std: expected a positive number, got 0"),
        (lambda: LogitNormal(std=-1.0), "std: expected a positive number, got -1"),
        (lambda: MinSnr(0.0), "gamma: expected a positive number, got 0"),
        (lambda: P2(k=0.0), "k: expected a positive number, got 0"),
        (lambda: P2(gamma=-1.0), "gamma: expected 0 or more, got -1"),
        (lambda: EdmWeight(0.0), "sigma_data: expected a positive number, got 0"),
    ],
)
def test_bad_options_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
