"""How few network calls does a sampler need, and how quiet can it be? Ours beside diffusers and k-diffusion.

    python benchmarks/sampling/run.py             # writes RESULTS.md; peers.py says how to install the other two

The denoiser is exact, so only the sampler errs. Deterministic solvers carry quantiles along: no noise in the figures.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cost
import peers
import torch
from analytic import DB, MIXTURES, Mixture, denoise_levels, level_errors, start, wasserstein
from torch import Tensor

from audio_diffusion.diffusion import grids
from audio_diffusion.diffusion.denoiser import Prediction
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, linear, lowered
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc

NFE = (5, 10, 15, 20, 50, 100, 1000)
Run = Callable[[peers.Denoiser, Tensor, int], Tensor]  # (denoise(x, sigma), standard normal x, NFE) -> x0


def ours(sampler: Callable[..., Tensor], schedule: Schedule) -> Run:
    """A solver of this project on a process of its own."""

    def run(exact: peers.Denoiser, x: Tensor, nfe: int) -> Tensor:
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

    def run(exact: peers.Denoiser, x: Tensor, nfe: int) -> Tensor:
        steps = (nfe + 1) // 2 if name == "heun" else nfe
        sigmas = torch.cat([peers.k_karras(steps)[:steps], torch.zeros(1, dtype=torch.float64)])
        return peers.k_diffusion(name, exact, x, sigmas)

    return run


DEFAULT = lowered(linear())
ROWS: dict[str, Run] = {
    "**unipc, balanced (default)**": ours(partial(unipc), DEFAULT),
    "unipc, balanced, on edm": ours(partial(unipc), VarianceExploding()),
    "unipc, balanced, on flow": ours(partial(unipc), Flow()),
    "unipc, karras": ours(partial(unipc, grid=grids.karras), DEFAULT),
    "unipc, log_snr": ours(partial(unipc, grid=grids.log_snr), DEFAULT),
    "dpmpp_2m, balanced": ours(partial(dpmpp, order=2), DEFAULT),
    "dpmpp_3m, balanced": ours(partial(dpmpp, order=3), DEFAULT),
    "heun, balanced": ours(partial(heun), DEFAULT),
    "ddim, trailing": ours(partial(ddim, grid=grids.trailing), DEFAULT),
    "euler, trailing, on flow": ours(partial(ddim, grid=grids.trailing), Flow()),
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


def main() -> None:
    """All tables into RESULTS.md."""
    torch.set_num_threads(1)
    text = (Path(__file__).parent / "RESULTS.head.md").read_text(encoding="utf-8")
    tables = [*quality(), "", "## Other densities", "", *held_out(), "", ""]
    (Path(__file__).parent / "RESULTS.md").write_text(text + "\n".join(["", *tables]), encoding="utf-8")
    cost.main()


if __name__ == "__main__":
    main()
