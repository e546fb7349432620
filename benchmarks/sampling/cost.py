"""What a step costs beyond the network: each solver beside the tightest loop that could be written for it by hand.

    python benchmarks/sampling/cost.py     # rewrites the last section of RESULTS.md

The network's answer is a tensor made beforehand. A loop by hand knows that the network predicts noise, has all its
numbers beforehand and gives no estimate to look at on the way; it does give the network its times. Both must come to
the same result.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.schedule import NoiseLevel
from audio_diffusion.diffusion.schedules import linear, lowered
from audio_diffusion.diffusion.solvers import dpmpp as multistep
from audio_diffusion.diffusion.solvers import unipc as predictor_corrector
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.heun import heun
from audio_diffusion.diffusion.solvers.unipc import unipc

SCHEDULE = lowered(linear())
SIZES = {1024: 61, 65536: 41, 2**21: 11}  # samples of [1, 2, T], and rounds
SHORT, LONG = 10, 50  # steps; a step's cost is the difference by 40
Net = Callable[[Tensor, Tensor], Tensor]
Loop = Callable[[Net, Tensor, int], Tensor]


def times_of(levels: list[NoiseLevel], x: Tensor) -> tuple[Tensor, ...]:
    """``[B]`` for each level."""
    return torch.tensor([level.time for level in levels])[:, None].expand(-1, len(x)).unbind()


def ended(net: Net, x: Tensor, t: Tensor, last: NoiseLevel) -> Tensor:
    """The estimate of x0 at the last level."""
    return x.mul_(1 / last.alpha).add_(net(x, t), alpha=-last.sigma / last.alpha)


def ddim_by_hand(n: int) -> Loop:
    """Two passes: x0 need not be made."""
    levels = SCHEDULE.levels(balanced, n)
    rows = [(s.alpha / t.alpha, s.sigma - s.alpha * t.sigma / t.alpha) for t, s in pairwise(levels)]

    def loop(net: Net, x_t: Tensor, _: int) -> Tensor:
        x, (*times, end) = x_t * levels[0].std, times_of(levels, x_t)
        for (keep, weight), t in zip(rows, times, strict=True):
            x.mul_(keep).add_(net(x, t), alpha=weight)
        return ended(net, x, end, levels[-1])

    return loop


def dpmpp_by_hand(n: int) -> Loop:
    """Four passes: one for y = alpha·x0, one for keep·x, one for each y."""
    levels = SCHEDULE.levels(balanced, n)
    rows = []
    for i, (before, t) in enumerate(pairwise([levels[0], *levels[:-1]])):
        keep, weights, _ = multistep.coefficients(levels, i, 2, 0.0)
        scaled = [w / level.alpha for w, level in zip([*weights, 0.0], (t, before), strict=False)]
        rows.append((-t.sigma, keep, *scaled))

    def loop(net: Net, x_t: Tensor, _: int) -> Tensor:
        x, (*times, end) = x_t * levels[0].std, times_of(levels, x_t)
        old = x
        for (sigma, keep, new_weight, old_weight), t in zip(rows, times, strict=True):
            y = x.add(net(x, t), alpha=sigma)
            x.mul_(keep).add_(y, alpha=new_weight).add_(old, alpha=old_weight)
            old = y
        return ended(net, x, end, levels[-1])

    return loop


def unipc_by_hand(n: int) -> Loop:
    """Six passes, corrector and predictor in one."""
    levels = SCHEDULE.levels(balanced, n)
    rows = []
    for i, (keep, weights) in enumerate(predictor_corrector.coefficients(levels, 3)):
        scaled = [w / levels[i - j].alpha for j, w in enumerate(weights)]
        rows.append((-levels[i].sigma, keep, *scaled, *[0.0] * (4 - len(scaled))))

    def loop(net: Net, x_t: Tensor, _: int) -> Tensor:
        x, (*times, end) = x_t * levels[0].std, times_of(levels, x_t)
        b = c = d = x
        for (sigma, keep, p, q, r, s), t in zip(rows, times, strict=True):
            a = x.add(net(x, t), alpha=sigma)
            x.mul_(keep).add_(a, alpha=p).add_(b, alpha=q).add_(c, alpha=r).add_(d, alpha=s)
            b, c, d = a, b, c
        return ended(net, x, end, levels[-1])

    return loop


def heun_by_hand(n: int) -> Loop:
    """Four passes for two network calls."""
    levels = SCHEDULE.levels(balanced, n)
    rows = [
        (s.alpha / t.alpha, s.sigma - s.alpha * t.sigma / t.alpha, 0.5 * (s.sigma - s.alpha * t.sigma / t.alpha))
        for t, s in pairwise(levels)
    ]

    def loop(net: Net, x_t: Tensor, _: int) -> Tensor:
        x, times = x_t * levels[0].std, times_of(levels, x_t)
        for (keep, weight, half), (t, s) in zip(rows, pairwise(times), strict=True):
            noise = net(x, t)
            x.mul_(keep).add_(noise, alpha=weight)
            x.add_(net(x, s), alpha=half).sub_(noise, alpha=half)
        return ended(net, x, times[-1], levels[-1])

    return loop


def ours(sampler: Callable[..., Tensor]) -> Loop:
    """As ``generate`` calls it."""

    process = Diffusion(SCHEDULE, Epsilon())

    def loop(net: Net, x_t: Tensor, n: int) -> Tensor:
        denoise = process.denoiser(net, {})
        return sampler(denoise, x_t, SCHEDULE, None, num_steps=n, grid=balanced)

    return loop


def diffusers(name: str) -> Loop:
    """A scheduler of diffusers, in the loop that its documentation shows."""
    import diffusers as library

    def loop(net: Net, x: Tensor, n: int) -> Tensor:
        scheduler = getattr(library, f"{name}Scheduler")()
        scheduler.set_timesteps(n)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t), t, x).prev_sample
        return x

    return loop


PAIRS = {
    "unipc (default)": (unipc, unipc_by_hand),
    "dpmpp_2m": (dpmpp, dpmpp_by_hand),
    "ddim": (ddim, ddim_by_hand),
    "heun (two calls)": (heun, heun_by_hand),
}
PEERS = {"DDIM": "DDIM", "DPM-Solver++(2M)": "DPMSolverMultistep", "UniPC": "UniPCMultistep"}


def slopes(loops: list[dict[int, Loop]], size: int) -> Iterator[list[float]]:
    """Rounds of microseconds a step of each loop, in turn."""
    noise, x = torch.randn(2, 1, 2, size, generator=torch.Generator().manual_seed(0))
    net: Net = lambda x, t, cond=None: noise  # noqa: E731
    if len(loops) == 2:
        torch.testing.assert_close(*(loop[LONG](net, x, LONG) for loop in loops), rtol=1e-3, atol=1e-3)

    def seconds(loop: dict[int, Loop], n: int) -> float:
        began = time.perf_counter()
        loop[n](net, x, n)
        return time.perf_counter() - began

    for i in range(SIZES[size] + 1):
        order = loops if i % 2 else loops[::-1]
        found = [(seconds(loop, LONG) - seconds(loop, SHORT)) / (LONG - SHORT) * 1e6 for loop in order]
        if i:  # the first warms up
            yield found if i % 2 else found[::-1]


def spread(values: list[float], digits: int) -> str:
    """Median [quartiles]."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def table() -> list[str]:
    """Ours, by hand, and their ratio round by round; then diffusers."""
    sizes = ["[1, 2, 1024]", "[1, 2, 65536]", "[1, 2, 2^21]"]
    lines = ["| us a step: ours / by hand = ratio | " + " | ".join(sizes) + " |", "|---|---|---|---|"]
    for name, (sampler, by_hand) in PAIRS.items():
        mine, hand = ours(sampler), {n: by_hand(n) for n in (SHORT, LONG)}
        cells = []
        for size in SIZES:
            rounds = list(slopes([{SHORT: mine, LONG: mine}, hand], size))
            a, b = (statistics.median(values) for values in zip(*rounds, strict=True))
            cells.append(f"{a:.1f} / {b:.1f} = {spread([a / b for a, b in rounds], 2)}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    for name, scheduler in PEERS.items() if importlib.util.find_spec("diffusers") else ():
        loop = diffusers(scheduler)
        cells = [spread([v for (v,) in slopes([{SHORT: loop, LONG: loop}], size)], 1) for size in SIZES]
        lines.append(f"| diffusers {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """The section, and the rest of the page as it is."""
    page = Path(__file__).parent / "RESULTS.md"
    torch.set_num_threads(1)
    with torch.no_grad():
        before = page.read_text(encoding="utf-8").partition("## Cost of a step\n")[0]
        page.write_text(before + "\n".join(["## Cost of a step", "", *table()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
