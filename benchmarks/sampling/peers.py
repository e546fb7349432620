"""The samplers of diffusers and k-diffusion, run on a denoiser in variance-exploding form: denoise(x, sigma) -> x0.

    python -m venv /path/to/peers    # not the project's own: both ask for much that sampling does not need
    pip install torch scipy tqdm && pip install --no-deps diffusers==0.42.1 k-diffusion==0.1.1.post1

Of k-diffusion only sampling.py is loaded: the package itself imports image metrics and loggers.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]


def k_sampling() -> Any:
    """k_diffusion.sampling without the rest of k_diffusion."""
    if "k_diffusion.sampling" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None
        assert spec.submodule_search_locations
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        utils = types.ModuleType("k_diffusion.utils")
        utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        stubs = {name: types.ModuleType(name) for name in ("torchsde", "torchdiffeq")}  # for solvers not used here
        stubs["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
        present = {name: sys.modules.get(name) for name in stubs}
        sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils, **stubs})
        importlib.import_module("k_diffusion.sampling")
        for name, module in present.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    return sys.modules["k_diffusion.sampling"]


def k_diffusion(
    name: str, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Iterator[Tensor] | None = None, **options: Any
) -> Tensor:
    """``sample_<name>`` from x = noise·sigmas[0] over ``sigmas``, the last of them 0."""
    model = lambda x, sigma, **_: denoise(x, float(sigma.flatten()[0]))  # noqa: E731
    if noise is not None:
        options["noise_sampler"] = lambda sigma, sigma_next: next(noise)
    return getattr(k_sampling(), f"sample_{name}")(model, x * sigmas[0], sigmas, disable=True, **options)


def k_karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Its usual grid, float64."""
    return k_sampling().get_sigmas_karras(n, sigma_min, sigma_max).double()


def diffusers(
    name: str,
    denoise: Denoise,
    x: Tensor,
    num_steps: int,
    noise: Iterator[Tensor] | None = None,
    to_estimate: bool = False,
    **options: Any,
) -> Tensor:
    """``<name>Scheduler`` from x ~ N(0, 1), on DDPM's linear schedule of 1000 steps.

    ``to_estimate`` ends on the estimate of the last evaluation, which is where a step to no noise leads: some
    schedulers cannot take that step at full order.
    """
    import diffusers as library

    own = {} if name.startswith("EDM") else {"beta_start": 1e-4, "beta_end": 0.02}
    unclipped = {"clip_sample": False} if name.startswith("DD") else {}
    eta = {"eta": options.pop("eta")} if "eta" in options else {}
    scheduler = getattr(library, f"{name}Scheduler")(**own, **unclipped, **options)
    if noise is not None:
        draw = lambda shape, *_, **__: next(noise).reshape(shape)  # noqa: E731
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("diffusers.schedulers") and hasattr(module, "randn_tensor"):
                module.randn_tensor = draw
    scheduler.set_timesteps(num_steps)
    x = x * float(scheduler.init_noise_sigma)
    estimates: list[Tensor] = []

    def kept(x: Tensor, sigma: float) -> Tensor:
        estimates.append(denoise(x, sigma))
        return estimates[-1]

    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        output = _output(scheduler, kept, x, t)
        if to_estimate and t == scheduler.timesteps[-1]:
            return estimates[-1]
        x = scheduler.step(output, t, x, **eta).prev_sample
    return x


def _output(scheduler: Any, denoise: Denoise, x: Tensor, t: Tensor) -> Tensor:
    """What an exact network would answer: the noise, or EDM's preconditioned output."""
    if type(scheduler).__name__.startswith("EDM"):
        sigma = float(scheduler.sigmas[scheduler.step_index])
        norm = (sigma**2 + 0.25) ** 0.5
        return (denoise(x, sigma) - 0.25 / norm**2 * x) / (sigma * 0.5 / norm)
    if hasattr(scheduler, "sigmas") and scheduler.step_index is None:
        scheduler._init_step_index(t)
    if hasattr(scheduler, "sigmas"):  # the level it computes with, not the nearest of the trained ones
        sigma = float(scheduler.sigmas[scheduler.step_index])
        scaled = type(scheduler).__name__.startswith(("Heun", "Euler"))  # these keep x0 + sigma·noise
        in_ve = x if scaled else x * (1 + sigma**2) ** 0.5
        return (in_ve - denoise(in_ve, sigma)) / sigma
    bar = float(scheduler.alphas_cumprod[t])
    sigma = ((1 - bar) / bar) ** 0.5
    in_ve = x / bar**0.5
    return (in_ve - denoise(in_ve, sigma)) / sigma
