"""To noise and back with a trained network: error, and network calls, of DDIM undone exactly and by Euler's steps.

    pip install -e '.[bench]'
    python benchmarks/editing/inversion.py data/drums runs/oneshots [--clips 9]

prints a table of held-out clips (those of network.py). ``run.py`` measures the same where the denoiser is exact.
"""

import argparse
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch: see train.py

import torch
from torch import Tensor

import audio_diffusion
from audio_diffusion.diffusion.denoiser import Denoiser
from audio_diffusion.diffusion.editing.inversion import error_db, invert
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.schedule import Grid, Schedule
from audio_diffusion.diffusion.solvers.ddim import ddim


@torch.no_grad()
def euler(denoise: Denoiser, clip: Tensor, schedule: Schedule, *, num_steps: int | None, grid: Grid) -> Tensor:
    """DDIM's own inversion (Song et al. 2020, section 4.3): each step asks where it starts, not where it ends."""
    levels = schedule.levels(grid, num_steps)
    x = clip * levels[-1].alpha
    for s, t in pairwise(reversed(levels)):
        ratio = t.alpha / s.alpha
        x = ratio * x + (t.sigma - ratio * s.sigma) * denoise(x, s.time).noise
    return x / levels[0].std


@torch.no_grad()
def there_and_back(
    way_back: Callable, denoise: Denoiser, clip: Tensor, schedule: Schedule, num_steps: int, grid: Grid = balanced
) -> tuple[Tensor, int]:
    """Error of each clip in dB of its level ``[B]``, and how often the network was args."""
    calls = 0

    def counted(x_t: Tensor, t: Tensor | float):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return denoise(x_t, t)

    noise = way_back(counted, clip, schedule, num_steps=num_steps, grid=grid)
    again = ddim(counted, noise, schedule, torch.Tensor, num_steps=num_steps, grid=grid)
    return error_db(again, clip), calls


def main() -> None:
    from network import held_out

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = audio_diffusion.load(args.run)
    audio, labels = held_out(str(args.data), model, args.clips)
    clip, process = model.representation.encode(audio), model.process

    def measure(name: str, labels: list[str] | None, guidance: float, steps: int) -> None:
        denoise = Guidance(guidance).denoiser(process, model.net, model._context(len(clip), labels, None))
        cells = []
        for way_back in (euler, invert):
            errors, calls = there_and_back(way_back, denoise, clip, process.schedule, steps)
            cells.append(f"{errors.median().item():.0f} ({errors.max().item():.0f}); {calls}")
        print(f"| {name}, {steps} steps | " + " | ".join(cells) + " |", flush=True)

    print("| median (worst), dB; calls | Euler's steps | ours |\n|---|---|---|")
    for steps in (25, 50, 100):
        measure("no condition", None, 1.0, steps)
    if labels:
        measure("labels given", labels, 1.0, 50)
        measure("guided by 2", labels, 2.0, 50)


if __name__ == "__main__":
    main()
