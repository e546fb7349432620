"""How few network calls does a sampler need, and how quiet can it be? Ours beside diffusers and k-diffusion.

    python benchmarks/sampling/run.py             # writes RESULTS.md; peers.py says how to install the other two

The denoiser is exact, so only the sampler errs. Deterministic solvers carry quantiles along: no noise in the figures.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import peers
import torch
from analytic import DB, MIXTURES, Mixture, denoise_levels, level_errors, start, wasserstein
from torch import Tensor

from audio_diffusion.diffusion import grids
from audio_diffusion.diffusion.parameterization import Epsilon, Prediction
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.samplers import ddim, dpmpp, heun, unipc
from audio_diffusion.diffusion.schedules import Edm, Flow, Schedule, linear, lowered

NFE = (5, 10, 15, 20, 50, 100, 1000)
Run = Callable[[peers.Denoise, Tensor, int], Tensor]  # (denoise(x, sigma), standard normal x, NFE) -> x0


def ours(sampler: Callable[..., Tensor], schedule: Schedule) -> Run:
    """A solver of this project on a process of its own."""

    def run(exact: peers.Denoise, x: Tensor, nfe: int) -> Tensor:
        def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
            assert isinstance(t, float)
            alpha, sigma = schedule.at(t)
            alpha = max(alpha, 1e-22)
            x0 = exact(x_t / alpha, sigma / alpha)
            return Prediction(x0, (x_t - alpha * x0) / sigma)

        steps = (nfe + 1) // 2 if sampler.func is heun else nfe  # type: ignore[attr-defined]
        return sampler(denoise, x, schedule, None, num_steps=steps)

    return run


def theirs(name: str, **options: object) -> Run:
    """A scheduler of diffusers."""
    per_step = 2 if name == "HeunDiscrete" else 1
    return lambda exact, x, nfe: peers.diffusers(
        name, exact, x, (nfe + 1) // per_step if per_step == 2 else nfe, **options
    )


def k(name: str) -> Run:
    """A solver of k-diffusion on its usual grid."""

    def run(exact: peers.Denoise, x: Tensor, nfe: int) -> Tensor:
        steps = (nfe + 1) // 2 if name == "heun" else nfe
        sigmas = torch.cat([peers.k_karras(steps)[:steps], torch.zeros(1, dtype=torch.float64)])
        return peers.k_diffusion(name, exact, x, sigmas)

    return run


DEFAULT = lowered(linear())
ROWS: dict[str, Run] = {
    "**unipc, balanced (default)**": ours(partial(unipc), DEFAULT),
    "unipc, balanced, on edm": ours(partial(unipc), Edm()),
    "unipc, balanced, on flow": ours(partial(unipc), Flow()),
    "unipc, karras": ours(partial(unipc, grid=grids.karras), DEFAULT),
    "unipc, log_snr": ours(partial(unipc, grid=grids.log_snr), DEFAULT),
    "dpmpp_2m, balanced": ours(partial(dpmpp, order=2), DEFAULT),
    "dpmpp_3m, balanced": ours(partial(dpmpp, order=3), DEFAULT),
    "heun, balanced": ours(partial(heun), DEFAULT),
    "ddim, trailing": ours(partial(ddim), DEFAULT),
    "euler, trailing, on flow": ours(partial(ddim), Flow()),
    "diffusers DDIM": theirs("DDIM"),
    "diffusers DPM-Solver++(2M)": theirs("DPMSolverMultistep"),
    "diffusers DPM-Solver++(2M), karras": theirs("DPMSolverMultistep", use_karras_sigmas=True),
    "diffusers UniPC, karras": theirs("UniPCMultistep", use_karras_sigmas=True),
    "diffusers UniPC": theirs("UniPCMultistep"),
    "diffusers Heun": theirs("HeunDiscrete"),
    "diffusers EDM DPM-Solver++(2M)": theirs("EDMDPMSolverMultistep"),
    "k-diffusion euler": k("euler"),
    "k-diffusion heun": k("heun"),
    "k-diffusion dpmpp_2m": k("dpmpp_2m"),
    "k-diffusion lms": k("lms"),
}


def cell(run: Run, nfe: int, mixture: Mixture, u: Tensor, z: Tensor) -> tuple[float, float, float]:
    """W2, and the largest error in dB down to -60 and to -80 dB; NaN where a peer fails."""
    try:
        distance = wasserstein(run(mixture.denoise, z[None, None], nfe), mixture.quantiles(u))
        return distance, *level_errors(run(denoise_levels, torch.ones(1, 1, len(DB), dtype=torch.float64), nfe))
    except (RuntimeError, ValueError, IndexError, AssertionError, ZeroDivisionError):
        return float("nan"), float("nan"), float("nan")


def quality() -> list[str]:
    """The table of W2 / dB60 / dB80."""
    u, z = start(4000)
    lines = ["| sampler | " + " | ".join(f"{n}" for n in NFE) + " |", "|---" * (len(NFE) + 1) + "|"]
    for name, run in ROWS.items():
        cells = [cell(run, nfe, MIXTURES["mixture"], u, z) for nfe in NFE]
        lines.append(f"| {name} | " + " | ".join(f"{w:.4f} / {a:.1f} / {b:.1f}" for w, a, b in cells) + " |")
        print(lines[-1], flush=True)
    return lines


def held_out() -> list[str]:
    """W2 at 20 NFE on other densities."""
    u, z = start(4000)
    names = [name for name in MIXTURES if name != "mixture"]
    lines = ["| W2 at 20 NFE | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in ("**unipc, balanced (default)**", "diffusers UniPC, karras", "k-diffusion dpmpp_2m"):
        found = [cell(ROWS[row], 20, MIXTURES[name], u, z)[0] for name in names]
        lines.append(f"| {row} | " + " | ".join(f"{w:.4f}" for w in found) + " |")
    return lines


def tight_2m(net: Callable[[Tensor], Tensor], x: Tensor, levels: list[tuple[float, float]]) -> Tensor:
    """DPM-Solver++(2M) of a noise predictor as one would write it for speed alone: in place, no abstractions."""
    old, last = None, 0.0
    for (alpha, sigma), (alpha_s, sigma_s) in pairwise(levels):
        x0 = torch.sub(x, net(x), alpha=sigma).div_(alpha)
        h = math.log(alpha_s / sigma_s) - math.log(alpha / sigma)
        whole = -math.expm1(-h)
        x.mul_(sigma_s / sigma)
        if old is None:
            x.add_(x0, alpha=alpha_s * whole)
        else:
            slope = 0.5 * whole * h / last
            x.add_(x0, alpha=alpha_s * (whole + slope)).add_(old, alpha=-alpha_s * slope)
        old, last = x0, h
    alpha, sigma = levels[-1]
    return torch.sub(x, net(x), alpha=sigma).div_(alpha)


def overhead() -> list[str]:
    """Microseconds that one more step costs with a network that costs nothing: 60 steps less 10, least of rounds."""
    free = Diffusion(DEFAULT, Epsilon()).denoiser(lambda x_t, t, cond: x_t, {})
    levels = {n: [DEFAULT.at(t) for t in grids.balanced(DEFAULT, n)] for n in (10, 60)}
    lines = ["| us a step | [1, 2, 1024] | [1, 2, 65536] | [1, 2, 2^21] |", "|---|---|---|---|"]
    sizes = (1024, 65536, 2**21)

    def seconds(call: Callable[[Tensor, int], object], x: Tensor, steps: int) -> float:
        rounds = []
        for _ in range(25 if x.shape[-1] < 2**20 else 3):
            given = x.clone()
            began = time.perf_counter()
            call(given, steps)
            rounds.append(time.perf_counter() - began)
        return min(rounds)

    def timed(call: Callable[[Tensor, int], object]) -> list[float]:
        found = []
        for size in sizes:
            x = torch.randn(1, 2, size)
            found.append((seconds(call, x, 60) - seconds(call, x, 10)) / 50 * 1e6)
        return found

    def peer(name: str) -> Callable[[Tensor, int], object]:
        import diffusers as library

        def call(x: Tensor, steps: int) -> None:
            scheduler = getattr(library, f"{name}Scheduler")()
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                x = scheduler.step(x, t, x).prev_sample

        return call

    cases: dict[str, Callable[[Tensor, int], object]] = {
        "hand-written 2M, in place": lambda x, n: tight_2m(lambda v: v, x, levels[n]),
        "ours: dpmpp_2m": lambda x, n: dpmpp(free, x, DEFAULT, None, num_steps=n),  # type: ignore[arg-type]
        "ours: ddim": lambda x, n: ddim(free, x, DEFAULT, None, num_steps=n),  # type: ignore[arg-type]
        "ours: unipc": lambda x, n: unipc(free, x, DEFAULT, None, num_steps=n),  # type: ignore[arg-type]
        "diffusers DDIM": peer("DDIM"),
        "diffusers DPM-Solver++(2M)": peer("DPMSolverMultistep"),
        "diffusers UniPC": peer("UniPCMultistep"),
    }
    with torch.no_grad():
        for name, call in cases.items():
            lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in timed(call)) + " |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """All tables into RESULTS.md."""
    torch.set_num_threads(1)
    text = (Path(__file__).parent / "RESULTS.head.md").read_text()
    tables = [*quality(), "", "## Other densities", "", *held_out(), "", "## Cost of a step", "", *overhead()]
    text += "\n".join(["", *tables])
    (Path(__file__).parent / "RESULTS.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
