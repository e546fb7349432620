"""Nothing is computed in float64 on a device that has none: a pretended one refuses what Apple silicon refuses."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from audio_diffusion.diffusion import float64
from audio_diffusion.diffusion.editing.constraints import Kept, LowBand, Unclipped
from audio_diffusion.diffusion.editing.inversion import interpolate
from audio_diffusion.diffusion.editing.noise import remove_noise
from audio_diffusion.diffusion.editing.vary import edit
from audio_diffusion.diffusion.generation import generate
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.parameterization import EdmPreconditioning, Epsilon, V, Velocity
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, cosine, input_scaled, linear, lowered
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc
from audio_diffusion.diffusion.weighting import EdmWeight, LogitNormal, LogNormal, MinSnr, Uniform
from audio_diffusion.metrics.bits import BoundMeter, FlowMeter
from audio_diffusion.networks.unet1d import UNet1d
from audio_diffusion.representations.waveform import Waveform

THERE = torch.device("cpu:0")  # tensors of the CPU itself say "cpu"
PROCESSES = {
    "default": lambda: Diffusion(lowered(linear()), Epsilon(), Uniform(), MinSnr()),
    "v_cosine": lambda: Diffusion(lowered(cosine()), V(), LogNormal(), MinSnr()),
    "flow": lambda: Diffusion(Flow(), Velocity(), LogitNormal(), EdmWeight()),
    "edm": lambda: Diffusion(VarianceExploding(), EdmPreconditioning(), LogNormal()),
    "diffwave": lambda: Diffusion(input_scaled(linear(50, 1e-4, 0.05), 0.1), Epsilon()),
}


class Pretended(TorchFunctionMode):
    """A device without float64, made of the CPU: it follows which tensors would lie on it, and refuses those of float64
    and operations between them and others (single numbers but for indices may come from the CPU)."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, weakref.ref] = {}

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor, on the device."""
        if tensor.dtype == torch.float64:
            raise RuntimeError("the pretended device has no float64")
        self.known[id(tensor)] = weakref.ref(tensor)
        return tensor

    def has(self, tensor: Any) -> bool:
        found = self.known.get(id(tensor))
        return found is not None and found() is tensor

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [self.has(tensor) for tensor in tensors]
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return THERE if here[0] else torch.device("cpu")
        out = func(*args, **kwargs)
        if name == "cpu":
            return out.clone()
        if name == "to" and (target := self._target([*args[1:], *kwargs.values()])) is not None:
            return self.put(out.clone() if not here[0] else out) if target else out.clone()
        if not tensors and kwargs.get("device") is not None:
            here = [torch.device(kwargs["device"]) == THERE]
        if not any(here):
            return out
        off = [t for t, on in zip(tensors, here, strict=False) if t.ndim and not on and t.is_floating_point()]
        if off and name not in ("copy_", "__get__", "__set__"):
            raise RuntimeError(f"{name}: tensors on the pretended device and on the CPU")
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.put(leaf)
        return out

    def _target(self, given: list[Any]) -> bool | None:
        """Whether ``to`` leads to the device; None where it only changes the type."""
        for argument in given:
            if isinstance(argument, Tensor):
                return self.has(argument)
            if isinstance(argument, torch.device | str):
                return torch.device(argument) == THERE
        return None


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    monkeypatch.setattr(float64, "WITHOUT", frozenset({"cpu"}))
    with Pretended() as mode:
        yield mode


def network(device: Pretended) -> UNet1d:
    torch.manual_seed(0)
    net = UNet1d(1, {}, 4, (8, 16), (2,), num_blocks=1, cond_width=8, attention=False)
    for parameter in net.parameters():
        device.put(parameter)
    return net


@pytest.mark.parametrize("name", PROCESSES)
def test_a_training_step(name: str, device: Pretended) -> None:
    net, process = network(device), PROCESSES[name]()
    u, x0, noise = (device.put(torch.rand(3)), device.put(torch.randn(3, 1, 64)), device.put(torch.randn(3, 1, 64)))
    t = process.time_of(u)
    assert device.has(t)
    loss = process.loss(net, x0, noise, t, {}).mean()
    assert device.has(loss)
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        unipc,
        ddim,
        partial(ddpm, num_steps=5),
        partial(dpmpp, order=2),
        partial(dpmpp, order=3, eta=1.0),
        partial(heun, churn=5.0),
    ],
)
@pytest.mark.parametrize("name", PROCESSES)
def test_sampling(name: str, sampler: Callable[..., Tensor], device: Pretended) -> None:
    sampler, guidance = partial(sampler, num_steps=5), Guidance(clip=4.0)
    x0 = generate(network(device), PROCESSES[name](), sampler, (1, 64), [1, 2], {}, guidance=guidance, device=THERE)
    assert device.has(x0)


@pytest.mark.parametrize(
    "constraint", [lambda x: Kept(x, x > 0), lambda x: LowBand(x, 0.1), lambda x: Unclipped(x, x.abs() > 0.9), None]
)
def test_editing(constraint: Any, device: Pretended) -> None:
    net, process, clip = network(device), PROCESSES["default"](), device.put(torch.rand(2, 1, 64))
    sampler = partial(unipc, num_steps=4)
    made = edit(
        net, process, sampler, clip, [1, 2], {}, strength=0.7, constraint=constraint and constraint(clip), iterations=1
    )
    assert device.has(made)


def test_inversion_and_noise(device: Pretended) -> None:
    net, process, clip = network(device), PROCESSES["default"](), device.put(torch.rand(1, 1, 64))
    assert device.has(interpolate(net, process, clip, clip, [0.5], {}, num_steps=3).clips)
    assert device.has(remove_noise(net, process, partial(unipc, num_steps=4), clip, 0.1, [1], {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "flow"])
def test_likelihood(name: str, device: Pretended) -> None:
    net, process = network(device), PROCESSES[name]()
    audio, mask = device.put(torch.rand(2, 1, 32) - 0.5), device.put(torch.ones(2, 1, 32, dtype=torch.bool))
    clips = (process.denoiser(net, {}), process.schedule, audio, mask, Waveform(2.0), [(1,), (2,)])
    bound = BoundMeter(num_levels=2, repeats=1)(*clips)
    flow = FlowMeter(repeats=1, tolerance=0.5)(*clips)
    assert bound.nats.dtype == flow.nats.dtype == torch.float64
    assert bound.nats.isfinite().all()
    assert flow.nats.isfinite().all()


def test_the_pretended_device_refuses_float64(device: Pretended) -> None:
    x = device.put(torch.ones(3))
    with pytest.raises(RuntimeError, match="no float64"):
        x.double()
    with pytest.raises(RuntimeError, match="no float64"):
        torch.ones(3, dtype=torch.float64).to(x.device)
    with pytest.raises(RuntimeError, match="on the CPU"):
        x + torch.ones(3)
    assert float64.in_double(x).dtype == torch.float64


def test_auto_is_apple_silicon_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from audio_diffusion.inference import checkpoint_reader

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    assert checkpoint_reader.device_of("auto") == torch.device("mps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_the_package_tells_threads_how_to_wait(given: dict[str, str], expected: str | None) -> None:
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    code = "import audio_diffusion, os, sys; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", str(expected)]
    assert ran.stderr == ""


def test_it_is_said_where_torch_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import audio_diffusion

    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match="Import audio_diffusion first"):
        audio_diffusion._wait_without_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "2000"  # of the processes that this one starts
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")
