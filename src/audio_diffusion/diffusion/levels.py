"""Level error of a sampler, measured without a network on Gaussian data, whose exact denoiser is known.

Half of the data is at -6 dB and half at -40 dB of x0's unit variance, as audio has loud and quiet parts. The exact
denoiser of Gaussian data is linear, so a sample is a weighted sum of all drawn noises, and its standard deviation
follows exactly from the weights. They are found by one run of the sampler on B samples, in each of which one noise is 1
and all others are 0.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.schedule import Schedule
from audio_diffusion.diffusion.solvers.solver import Sampler
from audio_diffusion.diffusion.solvers.unipc import unipc

LOUD_DB, QUIET_DB = -6.0, -40.0  # levels relative to x0's unit variance
TOLERATED_DB = 3.1  # slightly more than half or twice the power


class LevelError(NamedTuple):
    """Level of the samples minus that of the data, in dB, of the loud and of the quiet half."""

    loud_db: float
    quiet_db: float

    @property
    def worst_db(self) -> float:
        """The larger of the two errors in magnitude."""
        return max(abs(self.loud_db), abs(self.quiet_db))


def _exact(schedule: Schedule, std: Tensor) -> Denoiser:
    """Returns the exact denoiser, E[x0 | x_t] and E[noise | x_t], for x0 ~ N(0, std²)."""

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        assert isinstance(t, float)
        alpha, sigma = schedule.at(t)
        normed = x_t / (alpha**2 * std**2 + sigma**2)
        return Prediction(alpha * std**2 * normed, sigma * normed)

    return denoise


@torch.no_grad()
def level_error(schedule: Schedule, sampler: Sampler) -> LevelError:
    """Computes the level error of a sampler, on the CPU in float64.

    Raises:
        ValueError: if the schedule has fewer steps than the sampler takes.
    """
    std = 10 ** (torch.tensor([LOUD_DB, QUIET_DB], dtype=torch.float64) / 20)
    denoise, drawn = _exact(schedule, std), 0

    def nothing() -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros(1, 1, 2, dtype=torch.float64)

    sampler(denoise, nothing(), schedule, nothing)
    units = iter(torch.eye(drawn, dtype=torch.float64)[:, :, None, None].expand(-1, -1, -1, 2))
    draw = lambda: next(units).clone()  # noqa: E731
    levels = sampler(denoise, draw(), schedule, draw).square().sum((0, 1)).sqrt()
    loud, quiet = (20 * (levels / std).clamp(min=1e-9).log10()).tolist()
    return LevelError(loud, quiet)


def _said(db: float) -> str:
    return f"{abs(db):.1f} dB too {'loud' if db > 0 else 'quiet'}"


def describe_levels(process: Diffusion, sampler: Sampler) -> list[str]:
    """Describes for the user the levels at which a sampler generates loud and quiet sounds. Large errors result in a
    warning that recommends another sampler; a sampler that cannot be measured results in a warning too.

    Raises:
        ValueError: if one of this project's solvers is to use more steps than the schedule has.
    """
    schedule = process.schedule
    try:
        found = level_error(schedule, sampler)
    except Exception as error:  # a user's sampler may have other requirements on the signal
        if isinstance(error, ValueError) and _is_ours(sampler):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return [
            "sampler: the levels of loud and quiet sounds are not known",
            f"warning: levels were not measured: the sampler fails on a float64 signal [B, 1, 2] on the CPU ({reason})",
        ]
    parts = [("loud", LOUD_DB, found.loud_db), ("quiet", QUIET_DB, found.quiet_db)]
    if found.worst_db <= TOLERATED_DB:
        return [f"sampler: loud and quiet sounds keep their level (within {max(found.worst_db, 0.1):.1f} dB)"]
    said = " and ".join(f"{name} sounds ({at:.0f} dB) {_said(off)}" for name, at, off in parts)
    wrong = " and ".join(
        f"{name} sounds ({at:.0f} dB) come out {_said(off)}" for name, at, off in parts if abs(off) > TOLERATED_DB
    )
    return [
        f"sampler: generates {said}",
        f"warning: with this solver, grid and number of steps {wrong}. {_advice(schedule, sampler, found)}",
    ]


def _is_ours(sampler: Sampler) -> bool:
    while isinstance(sampler, partial):
        sampler = sampler.func
    return str(getattr(sampler, "__module__", "")).startswith("audio_diffusion.")


def _advice(schedule: Schedule, sampler: Sampler, found: LevelError) -> str:
    """Returns a recommendation of another sampler, whose level error has been measured."""
    given = getattr(sampler, "keywords", {}).get("num_steps")
    most = schedule.num_steps
    count, few = given or 50, min(25, most or 25)
    choices: list[tuple[str, Sampler]] = [
        ("sampler/grid=balanced", partial(sampler, grid=balanced)),
        (f"sampler=unipc sampler.num_steps={few}", partial(unipc, num_steps=few)),
        (f"sampler/grid=balanced sampler.num_steps={2 * count}", partial(sampler, grid=balanced, num_steps=2 * count)),
        ("sampler=unipc sampler.num_steps=50", partial(unipc, num_steps=min(50, most or 50))),
    ]
    for said, choice in choices:
        try:
            better = level_error(schedule, choice)
        except ValueError:  # the chain has too few steps, or the solver does not accept this grid
            continue
        if better.worst_db <= TOLERATED_DB:
            return f"Choose {said}, which is within {max(better.worst_db, 0.1):.1f} dB"
    return (
        "No solver has the right levels with this schedule, because its lowest noise hides quiet sounds or it has too "
        "few steps: use diffusion=default, which reaches -90 dB"
    )
