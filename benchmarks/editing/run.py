"""Inpainting by each method, against the conditional distribution that is known: writes RESULTS.md's table.

    python benchmarks/editing/run.py

Network calls are counted forward and backward passes alike.
"""

from collections.abc import Callable
from functools import partial

import torch
from gaussian import conditional_errors, covariance, denoiser, draws
from torch import Tensor

from audio_diffusion.diffusion import grids, plans
from audio_diffusion.diffusion.editing.consistency import consistent
from audio_diffusion.diffusion.editing.constraints import Kept
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Denoise, Diffusion
from audio_diffusion.diffusion.samplers import ddpm, dpmpp, unipc
from audio_diffusion.diffusion.schedules import linear, lowered

LENGTH, COUNT = 48, 6000
PROCESS = Diffusion(lowered(linear()), Epsilon())
Method = Callable[[Denoise, Kept, Callable[[], Tensor], int], Tensor]


def held(sampler: Callable[..., Tensor], iterations: int) -> Method:
    """A sampler over ``consistent``."""

    def run(denoise: Denoise, constraint: Kept, noise: Callable[[], Tensor], nfe: int) -> Tensor:
        wrapped = consistent(denoise, PROCESS, constraint, iterations)
        return sampler(wrapped, noise(), PROCESS.schedule, noise, num_steps=nfe // (1 + iterations))

    return run


def repaint(resampling: int, grid: grids.Grid) -> Method:
    """RePaint, Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1: known part noised anew, each step repeated."""

    def run(denoise: Denoise, constraint: Kept, noise: Callable[[], Tensor], nfe: int) -> Tensor:
        levels = plans.levels_of(PROCESS.schedule, grid, max(2, nfe // resampling))
        x = noise() * plans.start_std(levels)
        for t, s in zip(levels, [*levels[1:], plans.CLEAN], strict=True):
            beta = plans.fresh_variance(t, s)
            for turn in range(resampling if s is not plans.CLEAN else 1):
                x0 = denoise(x, t.t).x0
                if s is plans.CLEAN:
                    return constraint.onto(x0)
                mean = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2 * x + s.alpha * beta / t.sigma**2 * x0
                unknown = mean + beta**0.5 * s.sigma / t.sigma * noise()
                known = s.alpha * constraint.clip + s.sigma * noise()
                x_s = torch.where(constraint.keep, known, unknown)
                x = x_s if turn == resampling - 1 else t.alpha / s.alpha * x_s + beta**0.5 * noise()
        raise AssertionError

    return run


def exact(denoise: Denoise, constraint: Kept, noise: Callable[[], Tensor], nfe: int) -> Tensor:
    """Draws from the conditional itself: what is left is the error of measuring."""
    cov, keep = covariance(LENGTH), constraint.keep[0, 0]
    other = noise() @ torch.linalg.cholesky(cov).T
    gain = torch.linalg.solve(cov[keep][:, keep], cov[keep][:, ~keep])
    x0 = other.clone()
    x0[..., ~keep] += (constraint.clip - other)[..., keep] @ gain
    return constraint.onto(x0)


METHODS: dict[str, Method] = {
    "exact": exact,
    "replacement, RePaint without resampling": repaint(1, grids.trailing),
    "RePaint, 5 turns": repaint(5, grids.trailing),
    "RePaint, 10 turns": repaint(10, grids.trailing),
    "RePaint, 5 turns, balanced grid": repaint(5, grids.balanced),
    "RePaint, 10 turns, balanced grid": repaint(10, grids.balanced),
    "projection (DDNM), UniPC": held(unipc, 0),
    "projection, DPM-Solver++ 2M SDE": held(partial(dpmpp, eta=1.0), 0),
    "projection, DDPM": held(partial(ddpm, variance="beta_tilde"), 0),
    **{f"gradients, {k} iterations, UniPC": held(unipc, k) for k in (1, 2, 3, 4, 6)},
    **{f"gradients, {k} iterations, 2M SDE": held(partial(dpmpp, eta=1.0), k) for k in (1, 2, 3)},
}
TASKS = {
    "inpaint": torch.tensor([*[True] * 16, *[False] * 16, *[True] * 16]),
    "continue": torch.tensor([*[True] * 24, *[False] * 24]),
}


def errors(method: Method, keep: Tensor, nfe: int) -> tuple[float, float]:
    """Errors of mean and covariance, parts of the conditional standard deviation."""
    cov = covariance(LENGTH)
    clip, generator = draws(cov, COUNT, 1), torch.Generator().manual_seed(2)
    noise = lambda: torch.randn(clip.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    constraint = Kept(clip, keep.expand(COUNT, 1, LENGTH))
    with torch.no_grad():
        x0 = method(denoiser(PROCESS.schedule, cov), constraint, noise, nfe)[:, 0]
    return conditional_errors(clip[:, 0, keep], x0[:, ~keep], cov, keep)


def table(task: str) -> list[str]:
    """Markdown rows."""
    lines = [f"| {task} | 20 | 50 | 100 | 250 |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        cells = [errors(method, TASKS[task], nfe) for nfe in (20, 50, 100, 250)]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f} / {cov:.2f}" for mean, cov in cells) + " |")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    for task in TASKS:
        table(task)
