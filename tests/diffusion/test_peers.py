"""The same method, schedule and noise as in diffusers and k-diffusion: the same result, to 1e-4.

Their results are stored, see benchmarks/sampling/reference.py. DPM-Solver++(3M) is not compared: both weigh the second
difference by half of what the integral gives, which makes it second order; ours is third (test_samplers).
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.grids import karras, trailing
from audio_diffusion.diffusion.schedules import VarianceExploding, linear
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc

STORED = json.loads((Path(__file__).parent / "reference.json").read_text())
CASES = {
    "k-diffusion euler": ddim,
    "k-diffusion heun": heun,
    "k-diffusion heun churned": partial(heun, churn=2.0, churn_min=0.0, churn_max=1e9),
    "k-diffusion dpmpp_2m": partial(dpmpp, order=2),
    "k-diffusion dpmpp_2m_sde": partial(dpmpp, order=2, eta=0.7),
    "diffusers ddim": ddim,
    "diffusers ddim eta": partial(ddim, eta=0.6),
    "diffusers ddpm beta": partial(ddpm, variance="beta"),
    "diffusers ddpm beta_tilde": partial(ddpm, variance="beta_tilde"),
    "diffusers dpmpp_2m": partial(dpmpp, order=2),
    "diffusers dpmpp_2m_sde": partial(dpmpp, order=2, eta=1.0),
    "diffusers unipc 2": partial(unipc, order=2),
    "diffusers unipc 3": partial(unipc, order=3),
}


def draws() -> Iterator[Tensor]:
    """The noise the stored results were made with."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(1, 1, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_result_agrees(name: str, exact_mixture: Callable[..., Denoiser]) -> None:
    if name.startswith("k-diffusion"):
        schedule, noise = VarianceExploding(0.001, 100.0), draws()
        grid = partial(karras, sigma_min=0.002, sigma_max=80.0)
        start = next(noise) * 80 / (1 + 80**2) ** 0.5  # they leave out the data's part of x_T's variance
    else:
        schedule, noise, grid = linear(), draws(), trailing
        start = next(noise)
    denoise = exact_mixture(schedule, *STORED["mixture"])
    got = CASES[name](denoise, start, schedule, lambda: next(noise), num_steps=STORED["num_steps"], grid=grid)
    expected = torch.tensor(STORED["results"][name], dtype=torch.float64)
    torch.testing.assert_close(got.flatten(), expected, rtol=1e-4, atol=1e-4)


def test_every_stored_result_is_compared() -> None:
    assert set(CASES) == set(STORED["results"])
