"""Distances order what is known: halves of a corpus, another corpus, noise; and they grow with each degradation."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.distances.frechet import fad
from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.distances.neighbours import precision_recall_density_coverage
from audio_diffusion.metrics.embeddings.embedding import Embedded, embed_clips
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.packing.datasets import drums

RATE = 16_000
LENGTH = 8192


def embed(clips: Sequence[Tensor]) -> Embedded:
    return embed_clips(LogMel(RATE), clips, RATE)


def noise(seed: int) -> Tensor:
    return torch.randn(LENGTH, generator=torch.Generator().manual_seed(seed))


def plucked(seed: int) -> Tensor:
    """A decaying harmonic tone of a random pitch and decay: another corpus."""
    rng = np.random.default_rng(seed)
    time = torch.arange(LENGTH) / RATE
    hz, decay = rng.uniform(100, 500), rng.uniform(0.1, 0.4)
    partials = [torch.sin(2 * math.pi * hz * k * time) * (-k * time / decay).exp() / k for k in range(1, 8)]
    return 0.3 * torch.stack(partials).sum(0) + 1e-3 * noise(seed)


@pytest.fixture(scope="module")
def halves() -> list[list[Tensor]]:
    """Two halves of a corpus: 150 drum hits each."""
    return [[torch.from_numpy(audio) for _, _, audio in drums.hits(30, seed)] for seed in (0, 1)]


@pytest.fixture(scope="module")
def reference(halves: list[list[Tensor]]) -> Embedded:
    return embed(halves[0])


@pytest.mark.parametrize("distance", [kad, fad])
def test_halves_are_nearer_than_another_corpus_and_that_than_noise(
    distance: Callable, halves: list[list[Tensor]], reference: Embedded
) -> None:
    same = distance(embed(halves[1]), reference)
    other = distance(embed([plucked(i) for i in range(150)]), reference)
    white = distance(embed([0.1 * noise(i) for i in range(150)]), reference)
    assert same.interval[1] < 0.25 * other.interval[0]
    assert other.value < white.value
    assert same.value < 0.1 * white.value
    if distance is kad:
        assert same.interval[0] < 1
        assert abs(same.value) < 0.05 * other.value


def noisy(amount: float) -> Callable[[Tensor, int], Tensor]:
    return lambda clip, i: clip + amount * noise(i)


def low_passed(hz: float) -> Callable[[Tensor, int], Tensor]:
    keep = torch.fft.rfftfreq(LENGTH, 1 / RATE) <= hz
    return lambda clip, _: torch.fft.irfft(torch.fft.rfft(clip) * keep, LENGTH)


def clipped(gain: float) -> Callable[[Tensor, int], Tensor]:
    return lambda clip, _: (clip * gain).clamp(-1, 1) / gain


@pytest.mark.parametrize("distance", [kad, fad])
@pytest.mark.parametrize(
    "changes",
    [
        [noisy(amount) for amount in (0, 0.003, 0.01, 0.03, 0.1)],
        [low_passed(hz) for hz in (8000, 6000, 4000, 2000, 1000)],
        [clipped(gain) for gain in (1, 8, 30, 120)],
    ],
    ids=["noise", "low-pass", "clipping"],
)
def test_distances_grow_with_degradation(
    distance: Callable, changes: list[Callable], halves: list[list[Tensor]], reference: Embedded
) -> None:
    values = [
        distance(embed([change(clip, i) for i, clip in enumerate(halves[1])]), reference, replicates=2).value
        for change in changes
    ]
    assert values == sorted(values)
    assert values[-1] > 3 * max(values[0], 0.1)


def test_missing_classes_cost_coverage_and_noise_costs_density(halves: list[list[Tensor]], reference: Embedded) -> None:
    whole = precision_recall_density_coverage(embed(halves[1]), reference)
    some = precision_recall_density_coverage(
        embed([clip for i, clip in enumerate(halves[1] * 3) if i % 5 in (0, 1)]), reference
    )
    assert some["coverage"].value < 0.6 * whole["coverage"].value
    assert some["precision"].value > 0.8 * whole["precision"].value
    hiss = precision_recall_density_coverage(
        embed([noisy(0.1)(clip, i) for i, clip in enumerate(halves[1])]), reference
    )
    assert hiss["density"].value < 0.2 * whole["density"].value
