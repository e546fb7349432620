"""The network's output and x0, noise: there and back."""

import torch

from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.schedules import cosine


def test_a_perfect_output_gives_back_signal_and_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 9, 2, 5, generator=generator, dtype=torch.float64)
    alpha, sigma = (v[:, None, None] for v in cosine().alpha_sigma(torch.linspace(0.1, 0.99, 9).double()))
    x_t = alpha * x0 + sigma * noise
    parts = Epsilon()
    prediction = parts.predict(parts.target(x0, noise, alpha, sigma), x_t, alpha, sigma)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.noise, noise)


def test_any_output_gives_estimates_that_make_up_x_t() -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, output = torch.randn(2, 3, 2, 5, generator=generator, dtype=torch.float64)
    alpha, sigma = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    x0, noise = Epsilon().predict(output, x_t, alpha, sigma)
    torch.testing.assert_close(alpha * x0 + sigma * noise, x_t)
    assert torch.equal(noise, output)  # ε-prediction: the output is the noise (DDPM eq. 11)
