"""The forward process against DDPM's equations, and the training objective."""

import pytest
import torch
from torch import Tensor, nn

from audio_diffusion.diffusion.parameterization import EdmPreconditioning, Epsilon
from audio_diffusion.diffusion.process import Cond, Diffusion, full_times, per_sample
from audio_diffusion.diffusion.schedules import VarianceExploding, cosine, explicit, input_scaled, linear


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def process() -> Diffusion:
    return Diffusion(linear(), Epsilon())


class Recorder:
    """A network that says ``output`` and remembers what it was asked."""

    def __init__(self, output: Tensor):
        self.output, self.calls = output, []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.calls.append((x_t, t, cond))
        return self.output


# The forward process


def test_jump_of_the_worked_example() -> None:
    process = Diffusion(explicit([0.9, 0.8, 0.7]), Epsilon())
    x0, noise = torch.tensor([[[0.2, -0.1, 0.3]]]), torch.tensor([[[0.1, -0.2, 0.05]]])
    x_3 = process.add_noise(x0, noise, torch.ones(1))
    torch.testing.assert_close(x_3, torch.tensor([[[0.2124, -0.2118, 0.2482]]]), rtol=0, atol=5e-5)


def test_single_steps_add_up_to_the_jump(process: Diffusion) -> None:
    """x_t = √α_t·x_{t-1} + √(1-α_t)·ε with fresh ε (DDPM eq. 2) has the mean and variance of the jump (eq. 4)."""
    x0, num_steps = 1.7, process.schedule.num_steps
    betas = torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64)
    mean, variance = torch.tensor(x0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    zero, one = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    for i, beta in enumerate(betas, start=1):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        if i in (1, 2, 10, 500, 1000):
            t = torch.tensor([i / num_steps], dtype=torch.float64)
            torch.testing.assert_close(process.add_noise(x0 * one, zero, t).squeeze(), mean)
            torch.testing.assert_close(process.add_noise(zero, one, t).squeeze(), variance.sqrt())


def test_simulated_steps_have_the_variance_of_the_jump() -> None:
    alphas = [0.9, 0.8, 0.7]
    process, x = Diffusion(explicit(alphas), Epsilon()), torch.full((1, 1, 200_000), 0.5)
    for i, alpha in enumerate(alphas):
        x = alpha**0.5 * x + (1 - alpha) ** 0.5 * normal(*x.shape, seed=i)
    jump = process.add_noise(torch.full_like(x, 0.5), normal(*x.shape, seed=9), torch.ones(1))
    assert x.mean().item() == pytest.approx(jump.mean().item(), abs=0.01)
    assert x.std().item() == pytest.approx(jump.std().item(), rel=0.01)


def test_each_sample_has_its_own_time(process: Diffusion) -> None:
    x0, noise, t = normal(4, 2, 8), normal(4, 2, 8, seed=1), torch.tensor([0.0, 0.2, 0.7, 1.0])
    together = process.add_noise(x0, noise, t)
    for i in range(4):
        torch.testing.assert_close(
            together[i : i + 1], process.add_noise(x0[i : i + 1], noise[i : i + 1], t[i : i + 1])
        )
    assert torch.equal(together[0], x0[0])  # nothing is added at t = 0
    assert (together[3] - noise[3]).abs().max() < 0.03  # nearly nothing is left at t = 1


# Times


def test_uniform_draws_become_uniform_steps(process: Diffusion) -> None:
    """DDPM's algorithm 1 draws t from {1, .. T}: never 0, each equally often."""
    u = torch.linspace(0, 1, 50_001, dtype=torch.float64)[:-1]
    t = process.time_of(u + 1e-9)
    values, counts = t.unique(return_counts=True)
    assert torch.equal(values, torch.tensor([i / 1000 for i in range(1, 1001)]))
    assert (counts == 50).all()


@pytest.mark.parametrize(("u", "t"), [(0.0, 0.001), (1 - 2**-24, 1.0), (1.0, 1.0), (0.4995, 0.5)])
def test_ends_of_the_draw(process: Diffusion, u: float, t: float) -> None:
    drawn = process.time_of(torch.full((2, 1), u))
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, torch.full((2, 1), t))


def test_full_times_and_per_sample_shapes() -> None:
    like = torch.zeros(3, 2, 5, dtype=torch.float64)
    assert torch.equal(full_times(0.3, like), torch.full((3,), 0.3))
    spread = per_sample(torch.tensor([1.0, 2.0, 3.0]), like)
    assert spread.dtype == torch.float64
    assert torch.equal(like + spread, torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 2, 5).double())


# The objective


def test_loss_is_the_plain_squared_error(process: Diffusion) -> None:
    x0, noise, output = normal(3, 2, 8), normal(3, 2, 8, seed=1), normal(3, 2, 8, seed=2)
    t, cond = torch.tensor([0.1, 0.5, 0.9]), {"label": torch.tensor([0, 1, -1])}
    net = Recorder(output)
    loss = process.loss(net, x0, noise, t, cond)
    torch.testing.assert_close(
        loss, torch.stack([nn.functional.mse_loss(o, n) for o, n in zip(output, noise, strict=True)])
    )
    ((x_t, asked_t, asked_cond),) = net.calls  # one evaluation, of what algorithm 1 says
    torch.testing.assert_close(x_t, process.add_noise(x0, noise, t))
    assert asked_t is t
    assert asked_cond is cond


def test_scaling_the_input_is_training_on_fainter_data() -> None:
    """What a network learns of x0 at a scale, it learns of x0 made fainter: DiffWave's waveform "as it is"."""
    chain, x0, noise, t = linear(50, 1e-4, 0.05), normal(3, 2, 8), normal(3, 2, 8, seed=1), torch.tensor([0.1, 0.5, 1])
    net = lambda x_t, t, cond: torch.tanh(3 * x_t) + t[:, None, None]  # noqa: E731
    scaled = Diffusion(input_scaled(chain, 0.1), Epsilon()).loss(net, x0, noise, t, {})
    torch.testing.assert_close(scaled, Diffusion(chain, Epsilon()).loss(net, 0.1 * x0, noise, t, {}))


def test_the_exact_noise_has_no_loss(process: Diffusion) -> None:
    noise = normal(3, 2, 8)
    assert process.loss(Recorder(noise), normal(3, 2, 8, seed=1), noise, torch.rand(3), {}).tolist() == [0, 0, 0]


def test_mask_counts_only_its_positions(process: Diffusion) -> None:
    x0, noise, output, t = normal(3, 2, 8), normal(3, 2, 8, seed=1), normal(3, 2, 8, seed=2), torch.full((3,), 0.5)
    lengths = [8, 5, 1]
    mask = torch.arange(8) < torch.tensor(lengths)[:, None, None]  # [B, 1, T], as a batch has it
    loss = process.loss(Recorder(output), x0, noise, t, {}, mask)
    expected = [(output[i, :, :n] - noise[i, :, :n]).square().mean() for i, n in enumerate(lengths)]
    torch.testing.assert_close(loss, torch.stack(expected))
    everything = process.loss(Recorder(output), x0, noise, t, {}, torch.ones(3, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(everything, process.loss(Recorder(output), x0, noise, t, {}))


def test_a_fully_masked_sample_counts_for_nothing(process: Diffusion) -> None:
    output = normal(2, 1, 8, seed=2).requires_grad_()
    valid = torch.tensor([True, False])[:, None, None]
    loss = process.loss(Recorder(output), normal(2, 1, 8), normal(2, 1, 8, seed=1), torch.full((2,), 0.5), {}, valid)
    assert loss[1].item() == 0
    assert loss[0].item() > 0
    loss.sum().backward()
    assert output.grad is not None
    assert output.grad[0].abs().min() > 0
    assert not output.grad[1].any()


def test_half_precision_is_compared_in_float32(process: Diffusion) -> None:
    noise = (300 * normal(2, 1, 64)).half()  # its square is beyond float16
    loss = process.loss(Recorder(torch.zeros_like(noise)), noise, noise, torch.full((2,), 0.5), {})
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, noise.float().square().mean((1, 2)))


def test_denoiser_reads_the_output(process: Diffusion) -> None:
    process = Diffusion(cosine(), Epsilon())
    x0, noise, t = normal(3, 2, 8), normal(3, 2, 8, seed=1), torch.tensor([0.1, 0.5, 0.9])
    x_t, net, cond = process.add_noise(x0, noise, t), Recorder(noise), {"label": torch.tensor([1, 2, 3])}
    prediction = process.denoiser(net, cond)(x_t, t)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-4, atol=1e-5)
    assert torch.equal(prediction.noise, noise)
    assert net.calls == [(x_t, t, cond)]


def test_denoiser_answers_in_the_precision_it_is_asked_in(process: Diffusion) -> None:
    prediction = process.denoiser(Recorder(normal(2, 1, 8).bfloat16()), {})(normal(2, 1, 8), torch.full((2,), 0.5))
    assert prediction.x0.dtype == prediction.noise.dtype == torch.float32


def test_one_time_for_all_samples_may_be_a_number(process: Diffusion) -> None:
    x_t, net = normal(3, 2, 8), Recorder(normal(3, 2, 8, seed=1))
    denoise = process.denoiser(net, {})
    torch.testing.assert_close(denoise(x_t, 0.25), denoise(x_t, torch.full((3,), 0.25)))
    assert torch.equal(net.calls[0][1], torch.full((3,), 0.25))  # a network always sees [B]


def test_edm_network_is_shown_unit_variance() -> None:
    """At a noise of 80 its input is as large as at none: x_t over √(sigma² + sigma_data²)."""
    process, net = Diffusion(VarianceExploding(), EdmPreconditioning()), Recorder(torch.zeros(2, 1, 5000))
    x0, noise, t = normal(2, 1, 5000), normal(2, 1, 5000, seed=1), torch.tensor([0.0, 1.0])
    process.loss(net, x0, noise, t, {})
    process.denoiser(net, {})(process.add_noise(x0, noise, t), t)
    for shown, _, _ in net.calls:
        torch.testing.assert_close(shown.std((1, 2)), torch.ones(2), rtol=0.05, atol=0)
    torch.testing.assert_close(net.calls[0][0], net.calls[1][0])
