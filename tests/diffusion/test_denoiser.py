"""The contract of a denoiser: estimates are new tensors, so a solver may work in place."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.editing.consistency import consistent
from audio_diffusion.diffusion.editing.constraints import Kept
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.parameterization import X0, EdmPreconditioning, Epsilon, Parameterization, V, Velocity
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, cosine, linear, lowered

SHAPE = (2, 1, 8)
LABEL = {"label": torch.tensor([0, 2])}
PROCESSES: dict[str, tuple[Schedule, Parameterization]] = {
    "epsilon": (lowered(linear()), Epsilon()),
    "x0": (lowered(cosine()), X0()),
    "v": (lowered(cosine()), V()),
    "velocity": (Flow(), Velocity()),
    "edm": (VarianceExploding(), EdmPreconditioning()),
}


def fresh(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """A network that depends on all that it is given."""
    return torch.tanh(x_t) + 0.1 * t[:, None, None] + 0.2 * cond["label"][:, None, None]


def identity(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """A network that returns the very tensor that it was given."""
    return x_t


class Buffered:
    """A network that writes every output to the same memory, as CUDA graphs do."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.buffers.setdefault(len(x_t), torch.empty_like(x_t)).copy_(fresh(x_t, t, cond))


NETS: dict[str, Callable[[], Net]] = {"fresh": lambda: fresh, "identity": lambda: identity, "buffered": Buffered}


def held_to_half(process: Diffusion, net: Net) -> Denoiser:
    """Conditional on a known half of the signal."""
    keep = torch.arange(SHAPE[-1]).expand(SHAPE) < SHAPE[-1] // 2
    return consistent(process.denoiser(net, LABEL), process, Kept(torch.full(SHAPE, 0.3), keep))


DENOISERS: dict[str, Callable[[Diffusion, Net], Denoiser]] = {
    "plain": lambda process, net: process.denoiser(net, LABEL),
    "guided": lambda process, net: Guidance(2.0).denoiser(process, net, LABEL),
    "interval": lambda process, net: Guidance(2.0, interval=(0.0, 0.5)).denoiser(process, net, LABEL),
    "rescaled": lambda process, net: Guidance(2.0, rescale=0.7).denoiser(process, net, LABEL),
    "clipped": lambda process, net: Guidance(1.0, clip=1.0).denoiser(process, net, LABEL),
    "autoguided": lambda process, net: Guidance(2.0, weak=identity).denoiser(process, net, LABEL),
    "consistent": held_to_half,
}


def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def in_place(denoise: Denoiser, x_t: Tensor, schedule: Schedule) -> Tensor:
    """A two-step method that overwrites x_t first, reads the estimates after, and overwrites those as well."""
    levels, x, old = schedule.levels(balanced, 6), x_t.clone(), None
    for t, s in pairwise(levels):
        prediction = denoise(x, t.time)
        x.zero_()
        x0 = prediction.x0 if old is None else old.mul_(-0.2).add_(prediction.x0, alpha=1.2)
        x.add_(x0, alpha=s.alpha)
        x.add_(prediction.noise.mul_(s.sigma))
        old = prediction.x0
    return x


def out_of_place(denoise: Denoiser, x_t: Tensor, schedule: Schedule) -> Tensor:
    """The same without changing any tensor."""
    levels, x, old = schedule.levels(balanced, 6), x_t, None
    for t, s in pairwise(levels):
        x0, noise = (estimate.clone() for estimate in denoise(x.clone(), t.time))
        x = torch.zeros_like(x).add(x0 if old is None else (old * -0.2).add(x0, alpha=1.2), alpha=s.alpha)
        x, old = x + noise * s.sigma, x0
    return x


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("wrapped", DENOISERS)
@pytest.mark.parametrize("name", PROCESSES)
@torch.no_grad()
def test_a_solver_may_change_everything_in_place(name: str, wrapped: str, net: str) -> None:
    schedule, parameterization = PROCESSES[name]
    process = Diffusion(schedule, parameterization)
    one = in_place(DENOISERS[wrapped](process, NETS[net]()), noise(), schedule)
    other = out_of_place(DENOISERS[wrapped](process, NETS[net]()), noise(), schedule)
    assert torch.equal(one, other)


@pytest.mark.parametrize("t", [0.4, torch.tensor([0.3, 0.6])], ids=["a number", "each its own"])
@pytest.mark.parametrize("wrapped", DENOISERS)
@pytest.mark.parametrize("name", PROCESSES)
@torch.no_grad()
def test_estimates_share_no_memory_with_the_input_or_each_other(name: str, wrapped: str, t: Tensor | float) -> None:
    process, x_t = Diffusion(*PROCESSES[name]), noise()
    x0, eps = DENOISERS[wrapped](process, identity)(x_t, t)
    places = {tensor.untyped_storage().data_ptr() for tensor in (x_t, x0, eps)}
    assert len(places) == 3
    assert x0.shape == eps.shape == x_t.shape
    assert x0.dtype == eps.dtype == x_t.dtype
    assert torch.equal(x_t, noise())  # it was left alone
    alpha, sigma = process.alpha_sigma(t, x_t)
    torch.testing.assert_close(alpha * x0 + sigma * eps, x_t, rtol=1e-3, atol=1e-3)
