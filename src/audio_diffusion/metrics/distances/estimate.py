"""A measured distance with its uncertainty, and the bootstrap over clips that gives it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import Embedded

REPLICATES = 1000
MIN_CLIPS = 10  # fewer give no interval
CONFIDENCE = 0.95
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure of generated clips against real ones.

    Attributes:
        value: NaN if it is refused, because there are too few windows; ``note`` then has the reason.
        error: standard deviation over bootstrap replicates; NaN if unknown.
        interval: (low, high), 95 %; None if unknown. It says how far another set of as many generated and as many real
            clips would move the figure.
        floor: the same figure of real clips against other real ones: two disjoint halves of the reference. NaN if
            unknown. No model can be expected to pass it.
        windows: number of generated windows.
        reference_windows: number of real windows.
        note: reason of a refusal or of a missing interval or floor; empty otherwise.
    """

    value: float
    error: float = math.nan
    interval: tuple[float, float] | None = None
    floor: float = math.nan
    windows: int = 0
    reference_windows: int = 0
    note: str = ""


def check_pair(generated: Embedded, reference: Embedded) -> None:
    """Checks that two sets come from one embedding.

    Raises:
        ValueError: if they do not.
    """
    if generated.name != reference.name or generated.vectors.shape[1] != reference.vectors.shape[1]:
        raise ValueError(
            f"generated and reference: expected vectors of one embedding, got {generated.name!r} "
            f"[{generated.vectors.shape[1]}] and {reference.name!r} [{reference.vectors.shape[1]}]"
        )


def check_replicates(replicates: int) -> None:
    """Checks the number of bootstrap replicates.

    Raises:
        ValueError: unless it is a whole number of at least 2.
    """
    if not isinstance(replicates, int) or replicates < 2:
        raise ValueError(f"replicates: expected a whole number of at least 2, got {replicates}")


def without_number(generated: Embedded, reference: Embedded, reason: str) -> Estimate:
    """Creates an estimate without a value, with the reason."""
    return Estimate(math.nan, windows=len(generated), reference_windows=len(reference), note=reason)


def refused(generated: Embedded, reference: Embedded, least: int, reason: str) -> Estimate | None:
    """Returns an estimate without a value if either set has fewer than ``least`` windows, else None."""
    short = [
        f"{len(embedded)} {name} windows"
        for name, embedded in (("generated", generated), ("real", reference))
        if len(embedded) < least
    ]
    if not short:
        return None
    silent = generated.num_silent + reference.num_silent
    left_out = f"; {silent} nearly silent windows were left out" if silent else ""
    note = f"too few: {' and '.join(short)}, at least {least} are needed ({reason}){left_out}"
    return without_number(generated, reference, note)


def draw_weights(clips: int, seed: int, replicates: int = REPLICATES) -> Tensor:
    """Returns the number of draws of each clip in each bootstrap replicate, float64 ``[replicates, clips]``.

    Whole clips are drawn with replacement, because the windows of a clip depend on each other (block bootstrap; Efron
    and Tibshirani 1993, chapter 8).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(clips, (replicates, clips), generator=generator)
    weights = torch.zeros(replicates, clips, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones(replicates, clips, dtype=torch.float64))


def resampled_means(values: Tensor, clips: Tensor, seed: int, replicates: int = REPLICATES) -> Tensor:
    """Returns the mean over windows in each bootstrap replicate, float64 ``[replicates]``, in bounded memory.

    Args:
        values: of the windows, ``[N]``.
        clips: index of each window's clip, ``[N]``; whole clips are drawn, as by `draw_weights`.
        seed: of what is drawn.
        replicates: their number.
    """
    present, clips = clips.unique(return_inverse=True)
    sizes = torch.bincount(clips).double()
    sums = torch.zeros(len(present), dtype=torch.float64).index_add_(0, clips, values.double())
    generator, rows = torch.Generator().manual_seed(seed), max(1, _DRAWN_AT_ONCE // len(present))
    means = []
    for first in range(0, replicates, rows):
        shape = (min(rows, replicates - first), len(present))
        drawn = torch.randint(len(present), shape, generator=generator)
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return torch.cat(means)


def halves(reference: Embedded, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the clip indices of two disjoint random halves, without clips that have no window."""
    present = reference.clips.unique()
    order = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))]
    return order[: len(order) // 2], order[len(order) // 2 :]


def spread(values: Tensor) -> tuple[float, tuple[float, float]]:
    """Returns standard deviation and central 95 % of bootstrap replicates (percentile interval)."""
    values = values[values.isfinite()]
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return values.std().item(), (low, high)


def few_clips(generated: Embedded, reference: Embedded) -> str:
    """Returns the reason why there is no interval (too few clips); empty if there are enough."""
    counts = {"generated": len(generated.clips.unique()), "real": len(reference.clips.unique())}
    short = [f"{count} {name} clips" for name, count in counts.items() if count < MIN_CLIPS]
    return f"no interval: only {' and '.join(short)}, which are resampled; {MIN_CLIPS} are needed" if short else ""


def finish(
    value: float,
    generated: Embedded,
    reference: Embedded,
    replicates: Callable[[], Tensor],
    floor: float,
    notes: list[str] | None = None,
) -> Estimate:
    """Creates an estimate; replicates are computed only if there are enough clips."""
    notes = list(notes or [])
    error, interval = math.nan, None
    if reason := few_clips(generated, reference):
        notes.append(reason)
    else:
        error, interval = spread(replicates())
    return Estimate(value, error, interval, floor, len(generated), len(reference), "; ".join(notes))
