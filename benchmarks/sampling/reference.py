"""Writes tests/diffusion/reference.json: what diffusers and k-diffusion make of the same noise, for our tests.

    python benchmarks/sampling/reference.py     # with the packages that peers.py names

Stored, because both packages drag in far more than a test of samplers should ask for. The data is a mixture whose exact
denoiser the test has as well; noise is drawn by torch's generator, seed 0, float64, in the order it is used.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import peers
import torch
from analytic import Mixture
from torch import Tensor

WEIGHTS, MEANS, STDS = [0.3, 0.5, 0.2], [-1.0, 0.1, 1.2], [0.3, 0.25, 0.4]
NUM_STEPS = 10  # diffusers' DDIM takes its steps to be T/n long, rounded down
TRAILING = {"timestep_spacing": "trailing"}
MULTISTEP = {**TRAILING, "final_sigmas_type": "zero", "lower_order_final": False, "to_estimate": True}


def draws() -> Iterator[Tensor]:
    """The first is the start, the others are what the sampler adds."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(1, 1, 8, generator=generator, dtype=torch.float64)


def main() -> None:
    """All cases, rounded to 9 digits."""
    data = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in (WEIGHTS, MEANS, STDS)))
    sigmas = torch.cat([peers.k_karras(NUM_STEPS)[:NUM_STEPS], torch.zeros(1, dtype=torch.float64)])
    churn = {"s_churn": 2.0, "s_noise": 1.003}
    results = {}
    for name, solver, options in (
        ("euler", "euler", {}),
        ("heun", "heun", {}),
        ("dpmpp_2m", "dpmpp_2m", {}),
        ("dpmpp_2m_sde", "dpmpp_2m_sde", {"eta": 0.7}),
    ):
        noise = draws()
        x = next(noise)
        given = noise if "sde" in name else None
        results[f"k-diffusion {name}"] = peers.k_diffusion(solver, data.denoise, x, sigmas, given, **options)
    original, noise = torch.randn_like, draws()
    x = next(noise)
    torch.randn_like = lambda *_, **__: next(noise)  # type: ignore[assignment]
    results["k-diffusion heun churned"] = peers.k_diffusion("heun", data.denoise, x, sigmas, **churn)
    torch.randn_like = original
    for name, scheduler, options in (
        ("ddim", "DDIM", {**TRAILING}),
        ("ddim eta", "DDIM", {**TRAILING, "eta": 0.6}),
        ("ddpm beta", "DDPM", {**TRAILING, "variance_type": "fixed_large", "to_estimate": True}),
        ("ddpm beta_tilde", "DDPM", {**TRAILING, "variance_type": "fixed_small"}),
        ("dpmpp_2m", "DPMSolverMultistep", {**MULTISTEP}),
        (
            "dpmpp_2m_sde",
            "DPMSolverMultistep",
            {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"},
        ),
        ("unipc 2", "UniPCMultistep", {**MULTISTEP, "solver_order": 2}),
        ("unipc 3", "UniPCMultistep", {**MULTISTEP, "solver_order": 3}),
    ):
        noise = draws()
        results[f"diffusers {name}"] = peers.diffusers(
            scheduler, data.denoise, next(noise), NUM_STEPS, noise, **options
        )
    content = {
        "made by": "benchmarks/sampling/reference.py, diffusers 0.42.1, k-diffusion 0.1.1.post1",
        "mixture": [WEIGHTS, MEANS, STDS],
        "num_steps": NUM_STEPS,
        "results": {name: [round(v, 9) for v in x.flatten().tolist()] for name, x in results.items()},
    }
    path = Path(__file__).parents[2] / "tests" / "diffusion" / "reference.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path.name, *(f"\n  {name}: {v}" for name, v in content["results"].items()))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
