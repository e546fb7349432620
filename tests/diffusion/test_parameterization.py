"""The network's output and x0, noise, v: there and back, and what does not go together."""

import itertools

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.parameterization import (
    X0,
    EdmPreconditioning,
    Epsilon,
    Parameterization,
    V,
    Velocity,
    predict,
    velocity,
)
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import (
    Flow,
    VarianceExploding,
    cosine,
    input_scaled,
    linear,
    lowered,
    zero_terminal_snr,
)

SCHEDULES: dict[str, Schedule] = {
    "vp": lowered(cosine()),
    "zero": zero_terminal_snr(linear()),
    "scaled": input_scaled(linear(50, 1e-4, 0.05), 0.1),
    "edm": VarianceExploding(),
    "flow": Flow(),
}
PARTS: dict[str, Parameterization] = {
    "epsilon": Epsilon(),
    "x0": X0(),
    "v": V(),
    "velocity": Velocity(),
    "edm": EdmPreconditioning(),
    "edm-0.5": EdmPreconditioning(0.5),
}
ALLOWED = {
    ("epsilon", "vp"), ("x0", "vp"), ("x0", "zero"), ("x0", "flow"), ("v", "vp"), ("v", "zero"),
    ("epsilon", "scaled"), ("x0", "scaled"), ("velocity", "flow"), ("edm", "edm"), ("edm-0.5", "edm"),
}  # fmt: skip
PAIRS = pytest.mark.parametrize(("name", "kind"), sorted(ALLOWED))


def noised(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x0, noise, alpha, sigma, x_t over all of a schedule, float64."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 9, 2, 5, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.01, 0.99, 9).double()
    alpha, sigma = (v[:, None, None] for v in SCHEDULES[kind].alpha_sigma(t))
    return x0, noise, alpha, sigma, alpha * x0 + sigma * noise


@PAIRS
def test_a_perfect_output_gives_back_signal_noise_and_v(name: str, kind: str) -> None:
    x0, noise, alpha, sigma, x_t = noised(kind)
    prediction = predict(PARTS[name], PARTS[name].target(x0, noise, alpha, sigma), x_t, alpha, sigma)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(prediction.noise, noise, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(velocity(prediction, alpha, sigma), alpha * noise - sigma * x0, rtol=1e-6, atol=1e-6)


@PAIRS
def test_any_output_gives_estimates_that_make_up_x_t(name: str, kind: str) -> None:
    _, _, alpha, sigma, x_t = noised(kind)
    output = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x0, noise = predict(PARTS[name], output, x_t, alpha, sigma)
    torch.testing.assert_close(alpha * x0 + sigma * noise, x_t)
    again = PARTS[name].target(x0, noise, alpha, sigma)  # an output is the target of its own reading
    torch.testing.assert_close(again, output, rtol=1e-6, atol=1e-6)


@PAIRS
def test_numbers_and_tensors_read_alike(name: str, kind: str) -> None:
    _, _, alpha, sigma, x_t = noised(kind)
    one = predict(PARTS[name], x_t, x_t, alpha[4:5], sigma[4:5])
    other = predict(PARTS[name], x_t, x_t, alpha[4].item(), sigma[4].item())
    torch.testing.assert_close(one, other)


@PAIRS
def test_errors_of_output_and_noise_are_in_the_stated_ratio(name: str, kind: str) -> None:
    """It turns a weight of noise's error into one of the output's."""
    x0, noise, alpha, sigma, x_t = noised(kind)
    target = PARTS[name].target(x0, noise, alpha, sigma)
    wrong = predict(PARTS[name], target + 0.1, x_t, alpha, sigma).noise
    ratio = PARTS[name].noise_error(alpha, sigma).expand(9, 1, 1)
    torch.testing.assert_close((wrong - noise).square(), 0.01 * ratio.expand_as(noise), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_is_table_1(sigma_data: float) -> None:
    """c_skip, c_out and c_in; input and target have unit variance at every noise."""
    part, generator = EdmPreconditioning(sigma_data), torch.Generator().manual_seed(0)
    x0 = sigma_data * torch.randn(4, 1, 20_000, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 1, 20_000, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.5, 2.0, 50.0], dtype=torch.float64)[:, None, None]
    x_t, total = x0 + sigma * noise, sigma**2 + sigma_data**2
    c_skip, c_out = sigma_data**2 / total, sigma * sigma_data / total.sqrt()
    output = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(predict(part, output, x_t, 1.0, sigma).x0, c_skip * x_t + c_out * output)
    torch.testing.assert_close(part.network_input(x_t, 1.0, sigma), x_t / total.sqrt())
    torch.testing.assert_close(part.target(x0, noise, 1.0, sigma), (x0 - c_skip * x_t) / c_out)
    for made in (part.network_input(x_t, 1.0, sigma), part.target(x0, noise, 1.0, sigma)):
        torch.testing.assert_close(made.std((1, 2)), torch.ones(4).double(), rtol=0, atol=0.03)


def test_edm_keeps_its_digits_at_small_noise() -> None:
    x0, noise, sigma = torch.tensor([[[0.3]]]), torch.tensor([[[0.7]]]), torch.tensor([[[3e-5]]])
    part = EdmPreconditioning()
    prediction = predict(part, part.target(x0, noise, 1.0, sigma), x0 + sigma * noise, 1.0, sigma)
    torch.testing.assert_close(prediction.noise, noise, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "kind"), sorted(set(itertools.product(PARTS, SCHEDULES)) - ALLOWED))
def test_what_does_not_go_together_is_refused_with_what_to_use(name: str, kind: str) -> None:
    if (name, kind) == ("epsilon", "flow"):
        reason = "Epsilon cannot start from pure noise, and this schedule ends at alpha_T = 0.*use .*v or x0"
    elif (name, kind) == ("epsilon", "zero"):
        reason = "Epsilon cannot start from pure noise"
    else:
        reason = r"expects a schedule that is .*, got one that is .*: .*use "
    with pytest.raises(ValueError, match=f"parameterization: .*{reason}"):
        Diffusion(SCHEDULES[kind], PARTS[name])


@PAIRS
def test_what_goes_together_does(name: str, kind: str) -> None:
    assert Diffusion(SCHEDULES[kind], PARTS[name]).parameterization is PARTS[name]


def test_sigma_data_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sigma_data: expected a positive standard deviation, got 0"):
        EdmPreconditioning(0.0)
