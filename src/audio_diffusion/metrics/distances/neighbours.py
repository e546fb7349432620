"""Fidelity and variety by nearest neighbours: precision, recall, density and coverage."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.diffusion.float64 import in_double
from audio_diffusion.metrics.distances.estimate import (
    REPLICATES,
    Estimate,
    check_pair,
    check_replicates,
    finish,
    halves,
    refused,
    resampled_means,
)
from audio_diffusion.metrics.embeddings.embedding import Embedded

NAMES = ("precision", "recall", "density", "coverage")
MIN_WINDOWS = 100
_BLOCK = 2048


@dataclass(frozen=True)
class Shares:
    """The contribution of each window; a figure is the mean over windows.

    precision, density: of the generated windows, float64 ``[N]``.   recall, coverage: of the real ones, ``[M]``.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor

    def values(self) -> dict[str, float]:
        """The four figures."""
        return {name: getattr(self, name).mean().item() for name in NAMES}


def neighbour_shares(vectors: Tensor, reference: Tensor, k: int = 5) -> Shares:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2), density and coverage (Naeem et
    al. 2020, arXiv:2002.09797, eqs. 5 and 6).

    The ball of a window reaches to its k-th nearest neighbour in its own set.

    ========= =============================================================================================
    precision share of generated windows inside the ball of a real one
    recall    share of real windows inside the ball of a generated one
    density   number of real balls that a generated window lies in, divided by k; may exceed 1
    coverage  share of real windows whose ball holds a generated one
    ========= =============================================================================================

    Args:
        vectors: of generated windows, ``[N, E]``.
        reference: of real windows, ``[M, E]``.
        k: number of the neighbour that a ball reaches to.

    Raises:
        ValueError: for other shapes, k below 1, or a set of fewer than k + 1 windows.
    """
    check_at_least_one(k=k)
    for name, value in (("vectors", vectors), ("reference", reference)):
        if value.ndim != 2 or len(value) <= k or value.shape[1] != reference.shape[-1]:
            raise ValueError(f"{name}: expected [at least {k + 1}, {reference.shape[-1]}], got {list(value.shape)}")
    ours, theirs = in_double(vectors), in_double(reference)
    centre = theirs.mean(0)
    ours, theirs = ours - centre, theirs - centre
    our_radii, their_radii = _radii(ours, k), _radii(theirs, k)
    density, covered = [], torch.zeros(len(theirs), dtype=torch.bool, device=theirs.device)
    recalled = covered.clone()
    for rows in torch.arange(len(ours), device=ours.device).split(_BLOCK):
        squares = _squares(ours[rows], theirs)
        in_real = squares <= their_radii
        density.append(in_real.sum(1))
        covered |= in_real.any(0)
        recalled |= (squares <= our_radii[rows, None]).any(0)
    counts = torch.cat(density).double().cpu()
    return Shares((counts > 0).double(), recalled.double().cpu(), counts / k, covered.double().cpu())


def precision_recall_density_coverage(
    generated: Embedded, reference: Embedded, k: int = 5, seed: int = 0, replicates: int = REPLICATES
) -> dict[str, Estimate]:
    """The four figures of `neighbour_shares`, each with a bootstrap interval and its floor, by name.

    The interval is the central 95 % of replicates that draw whole clips with replacement: generated ones for precision
    and density, real ones for recall and coverage. The balls stay those of the whole sets, since a copy of a window
    would shrink them to nothing. The floor is one half of the reference against the other. Recall and coverage depend
    on the number of windows: compare figures of equal counts.

    They are refused for fewer than 100 windows (or 2·k, if that is more) of either set.
    """
    check_pair(generated, reference)
    check_replicates(replicates)
    check_at_least_one(k=k)
    if refusal := refused(generated, reference, max(MIN_WINDOWS, 2 * k), "precision, recall, density and coverage"):
        return dict.fromkeys(NAMES, refusal)
    shares = neighbour_shares(generated.vectors, reference.vectors, k)
    first, second = (reference.select(half).vectors for half in halves(reference, seed))
    if min(len(first), len(second)) > k:
        floors, notes = neighbour_shares(first, second, k).values(), []
    else:
        floors = dict.fromkeys(NAMES, math.nan)
        notes = [f"no floor: half of the reference has fewer than {k + 1} windows"]

    def draw(name: str) -> Tensor:
        embedded = generated if name in ("precision", "density") else reference
        return resampled_means(getattr(shares, name), embedded.clips, seed, replicates)

    return {
        name: finish(value, generated, reference, lambda name=name: draw(name), floors[name], notes)  # type: ignore[misc]
        for name, value in shares.values().items()
    }


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``[N, M]``."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def _radii(vectors: Tensor, k: int) -> Tensor:
    """Squared distance of each vector from its k-th nearest neighbour."""
    radii = []
    for rows in torch.arange(len(vectors), device=vectors.device).split(_BLOCK):
        squares = _squares(vectors[rows], vectors)
        squares[torch.arange(len(rows)), rows] = torch.inf  # a vector is not its own neighbour
        radii.append(squares.kthvalue(k, dim=1).values)
    return torch.cat(radii)
