"""Inpainting, declipping, long signals and inversion against what is known of Gaussian signals: writes RESULTS.md.

    python benchmarks/editing/run.py

Network calls count forward and backward passes alike.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from gaussian import (
    conditional_errors,
    covariance,
    denoiser,
    distance,
    draws,
    log_densities,
    mixture_denoiser,
)
from inversion import there_and_back
from torch import Tensor

from audio_diffusion.diffusion import grids
from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.editing.consistency import consistent
from audio_diffusion.diffusion.editing.constraints import Kept, Unclipped
from audio_diffusion.diffusion.editing.inversion import invert
from audio_diffusion.diffusion.editing.windows import Windowed
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.schedule import Grid, NoiseLevel, added_variance
from audio_diffusion.diffusion.schedules import linear, lowered
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.unipc import unipc

LENGTH, COUNT, NFE = 48, 2000, (20, 50, 100, 250)
CLEAN = NoiseLevel(0.0, 1.0, 0.0, math.inf, 1.0)
PROCESS = Diffusion(lowered(linear()), Epsilon())
Method = Callable[[Denoiser, Kept, Callable[[], Tensor], int], Tensor]


def held(sampler: Callable[..., Tensor], iterations: int) -> Method:
    """A sampler over ``consistent``."""

    def run(denoise: Denoiser, constraint: Kept, noise: Callable[[], Tensor], nfe: int) -> Tensor:
        wrapped = consistent(denoise, PROCESS, constraint, iterations)
        return sampler(wrapped, noise(), PROCESS.schedule, noise, num_steps=nfe // (1 + iterations))

    return run


def repaint(resampling: int, grid: Grid) -> Method:
    """RePaint, Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1: known part noised anew, each step repeated."""

    def run(denoise: Denoiser, constraint: Kept, noise: Callable[[], Tensor], nfe: int) -> Tensor:
        levels = PROCESS.schedule.levels(grid, max(2, nfe // resampling))
        x = noise() * levels[0].std
        for t, s in zip(levels, [*levels[1:], CLEAN], strict=True):
            beta = added_variance(t, s)
            for turn in range(resampling if s is not CLEAN else 1):
                x0 = denoise(x, t.time).x0
                if s is CLEAN:
                    return constraint.onto(x0)
                mean = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2 * x + s.alpha * beta / t.sigma**2 * x0
                unknown = mean + beta**0.5 * s.sigma / t.sigma * noise()
                known = s.alpha * constraint.clip + s.sigma * noise()
                x_s = torch.where(constraint.keep, known, unknown)
                x = x_s if turn == resampling - 1 else t.alpha / s.alpha * x_s + beta**0.5 * noise()
        raise AssertionError

    return run


def exact(denoise: Denoiser, constraint: Kept, noise: Callable[[], Tensor], nfe: int) -> Tensor:
    """Draws from the conditional itself: what is left is the error of measuring."""
    cov, keep = covariance(LENGTH), constraint.keep[0, 0]
    other = noise() @ torch.linalg.cholesky(cov).T
    gain = torch.linalg.solve(cov[keep][:, keep], cov[keep][:, ~keep])
    x0 = other.clone()
    x0[..., ~keep] += (constraint.clip - other)[..., keep] @ gain
    return constraint.onto(x0)


SDE = partial(dpmpp, eta=1.0)
METHODS: dict[str, Method] = {
    "replacement (RePaint, 1 turn)": repaint(1, grids.trailing),
    "RePaint, 5 turns": repaint(5, grids.trailing),
    "RePaint, 10 turns": repaint(10, grids.trailing),
    "RePaint, 5 turns, grid balanced": repaint(5, grids.balanced),
    "projection (DDNM), UniPC": held(unipc, 0),
    "projection, DPM-Solver++ 2M SDE": held(SDE, 0),
    **{f"ours, {k} backward passes a step, UniPC": held(unipc, k) for k in (1, 2, 3)},
    **{f"ours, {k} backward passes a step, 2M SDE": held(SDE, k) for k in (2,)},
}
TASKS = {
    "inpaint": torch.tensor([*[True] * 16, *[False] * 16, *[True] * 16]),
    "continue": torch.tensor([*[True] * 24, *[False] * 24]),
}
KINDS = [covariance(LENGTH, low, high) for low, high in ((0.2, 1.2), (0.5, 1.7), (0.8, 2.4))]


def run(method: Method, denoise: Denoiser, clip: Tensor, keep: Tensor, nfe: int) -> Tensor:
    """What the method makes of the clips, ``[B, T]``."""
    generator = torch.Generator().manual_seed(2)
    noise = lambda: torch.randn(clip.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    with torch.no_grad():
        return method(denoise, Kept(clip, keep.expand(len(clip), 1, -1)), noise, nfe)[:, 0]


def gaussian_cell(method: Method, keep: Tensor, nfe: int) -> str:
    """Errors of mean and covariance, parts of the conditional standard deviation."""
    cov = covariance(LENGTH)
    clip = draws(cov, COUNT, 1)
    x0 = run(method, denoiser(PROCESS.schedule, cov), clip, keep, nfe)
    mean, spread = conditional_errors(clip[:, 0, keep], x0[:, ~keep], cov, keep)
    return f"{mean:.2f} / {spread:.2f}"


def log_likelihood(x: Tensor) -> float:
    """Mean log density of the mixture, nats."""
    return log_densities(x, KINDS).logsumexp(1).mean().item()


def mixture_cell(method: Method, keep: Tensor, nfe: int) -> str:
    """How much less likely a made sample is than a true one, nats."""
    clip = torch.cat([draws(cov, 200, i) for i, cov in enumerate(KINDS)])
    x0 = run(method, mixture_denoiser(PROCESS.schedule, KINDS), clip, keep, nfe)
    return f"{(log_likelihood(clip[:, 0]) - log_likelihood(x0)) / int((~keep).sum()):.2f}"


def table(
    title: str, cell: Callable[[Method, Tensor, int], str], keep: Tensor, methods: dict[str, Method]
) -> list[str]:
    """Markdown rows, one a method, one column a number of network calls."""
    lines = ["", f"| {title} | " + " | ".join(map(str, NFE)) + " |", "|---" * (len(NFE) + 1) + "|"]
    for name, method in methods.items():
        lines.append(f"| {name} | " + " | ".join(cell(method, keep, nfe) for nfe in NFE) + " |")
        print(lines[-1], flush=True)
    return lines


def gibbs(clip: Tensor, level: float, cov: Tensor, sweeps: int) -> Tensor:
    """Draws from the posterior itself: each clipped sample in turn, given all others and cut off at the level."""
    precision, generator = torch.linalg.inv(cov), torch.Generator().manual_seed(0)
    x, side, stds = clip[:, 0].clone(), clip[:, 0].sign(), precision.diagonal().rsqrt()
    for i in list(range(LENGTH)) * sweeps:
        mean = side[:, i] * (x[:, i] - (x @ precision[:, i]) * stds[i] ** 2)
        beyond = torch.special.ndtr((mean - level) / stds[i])
        part = torch.rand(len(x), generator=generator, dtype=x.dtype)
        drawn = mean - stds[i] * torch.special.ndtri((part * beyond).clamp(min=1e-300))
        x[:, i] = torch.where(clip[:, 0, i].abs() >= level, side[:, i] * drawn, x[:, i])
    return x[:, None]


def declipping() -> list[str]:
    """SDR, and how far beyond the level what was clipped lies, in mean and standard deviation."""
    cov = covariance(LENGTH)
    denoise, clean = denoiser(PROCESS.schedule, cov), draws(cov, COUNT, 1)
    lines = ["", "| clipped at | | SDR, dB | beyond the level |", "|---|---|---|---|"]
    for level in (1.0, 1.5):
        clip = clean.clamp(-level, level)
        made = {"clipped": clip, "the clean signals": clean, "Gibbs' sampler, 100 turns": gibbs(clip, level, cov, 100)}
        for iterations in (0, 2):
            generator = torch.Generator().manual_seed(2)
            noise = lambda g=generator: torch.randn(clean.shape, generator=g, dtype=torch.float64)  # noqa: E731
            held_to = consistent(denoise, PROCESS, Unclipped(clip, clip.abs() >= level), iterations)
            with torch.no_grad():
                x0 = unipc(held_to, noise(), PROCESS.schedule, noise, num_steps=25)
            made[f"ours, {iterations} backward passes a step, 25 steps"] = Unclipped(clip, clip.abs() >= level).onto(x0)
        for name, x0 in made.items():
            sdr = 10 * torch.log10(clean.square().mean() / (x0 - clean).square().mean()).item()
            beyond = (x0.abs() - level)[clip.abs() >= level]
            lines.append(f"| {level:g} | {name} | {sdr:.1f} | {beyond.mean():.2f} ± {beyond.std():.2f} |")
            print(lines[-1], flush=True)
    return lines


def windows() -> list[str]:
    """Largest error of level and of spectrum (frames of 32) at any place of three windows' length."""
    window, length, frame = 96, 288, 32
    exact, true, units = denoiser(PROCESS.schedule, covariance(window)), covariance(length), torch.eye(length)[:, None]
    fourier = torch.fft.rfft(torch.diag(torch.hann_window(frame, dtype=torch.float64)))
    lines = ["", "| overlap, weights | level, dB | spectrum, dB | Wasserstein-2 |", "|---|---|---|---|"]

    def spectra(cov: Tensor) -> Tensor:
        frames = [cov[i : i + frame, i : i + frame].to(fourier.dtype) for i in range(length - frame + 1)]
        return torch.stack([(fourier.conj().T @ f @ fourier).diagonal().real for f in frames])

    for overlap in (0, 16, 24, 48):
        for shape in ("sin²", "equal (MultiDiffusion)"):
            net = Windowed(lambda x, t, cond: exact(x, t[0].double().item()).noise, window, overlap, batch_size=4096)
            if shape != "sin²":
                net.weight = torch.ones(window)
            with torch.no_grad():
                rows = unipc(PROCESS.denoiser(net, {}), units.double(), PROCESS.schedule, lambda: units)[:, 0]
            made = rows.T @ rows
            level = (10 * torch.log10(made.diagonal())).abs().max().item()
            spectrum = (10 * torch.log10(spectra(made) / spectra(true))).abs().max().item()
            lines.append(
                f"| {overlap} of {window}, {shape} | {level:.2f} | {spectrum:.2f} | {distance(made, true):.3f} |"
            )
            print(lines[-1], flush=True)
    return lines


def inversion() -> list[str]:
    """Error of going from clips to noise and back, dB, and the network calls of both ways."""
    cov = covariance(LENGTH)
    denoise, clip = denoiser(PROCESS.schedule, cov), draws(cov, 500, 1)
    lines = ["", "| there and back | 25 steps | 50 steps | 100 steps |", "|---|---|---|---|"]
    for name, grid in (
        ("balanced (default)", grids.balanced),
        ("log_snr", grids.log_snr),
        ("even in t", grids.uniform),
    ):
        cells = []
        for steps in (25, 50, 100):
            errors, calls = there_and_back(invert, denoise, clip, PROCESS.schedule, steps, grid)
            cells.append(f"{errors.mean().item():.0f} ({calls})")
        lines.append(f"| grid {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    here = Path(__file__).parent
    page = (here / "RESULTS.head.md").read_text(encoding="utf-8").splitlines()
    for task, kept in TASKS.items():
        page += table(f"{task}: mean / covariance", gaussian_cell, kept, {"exact draws": exact, **METHODS})
    page += table("inpaint, mixture of three kinds: nats", mixture_cell, TASKS["inpaint"], METHODS)
    page += ["", "## Declipping", *declipping(), "", "## Long signals", *windows(), "", "## Inversion", *inversion()]
    (here / "RESULTS.md").write_text("\n".join(page) + "\n", encoding="utf-8")
