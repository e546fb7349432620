"""Copies of training clips are found and drawn, new clips are not."""

import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import embed_clips
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.memorisation import Memorisation, correlation, memorisation, picture
from audio_diffusion.packing.datasets import drums

RATE = 16_000


def hits(per_class: int, seed: int) -> list[Tensor]:
    return [torch.from_numpy(np.array(audio))[None] for _, _, audio in drums.hits(per_class, seed)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def train() -> list[Tensor]:
    return hits(20, 0)


@pytest.fixture(scope="module")
def held_out() -> list[Tensor]:
    return hits(4, 1)


def of_new_clips(train: list[Tensor], held_out: list[Tensor], copies: list[Tensor]) -> Memorisation:
    return memorisation([*hits(3, 2), *copies], train, held_out, RATE, LogMel(), candidates=4)


def test_copies_are_flagged_whatever_their_gain_and_shift(train: list[Tensor], held_out: list[Tensor]) -> None:
    moved = torch.roll(-0.5 * train[33], 300, dims=-1) + 1e-4 * noise(1, 8192)
    result = of_new_clips(train, held_out, [train[7].clone(), moved])
    exact, shifted = 15, 16
    assert {exact, shifted} <= set(result.flagged)
    flags = {(flag.clip, flag.measure): flag for flag in result.flags}
    assert flags[exact, "embedding"].nearest == flags[exact, "waveform"].nearest == 7
    assert flags[exact, "embedding"].value == pytest.approx(0, abs=1e-4)
    assert flags[exact, "waveform"].value == pytest.approx(1)
    assert flags[shifted, "waveform"].nearest == 33
    assert flags[shifted, "waveform"].value > 0.99
    assert str(flags[exact, "waveform"]).startswith("generated 15 ~ training 7: correlation 1.000 > 0.9")


def test_the_ratio_of_distances_is_one_for_new_clips_less_for_copies_and_more_for_noise(
    train: list[Tensor], held_out: list[Tensor]
) -> None:
    def ratio(generated: list[Tensor]) -> float:
        return memorisation(generated, train, held_out, RATE, LogMel(), candidates=1).distance_ratio

    assert 0.6 < ratio(hits(4, 2)) < 1.6
    assert ratio(train[:10]) < 1e-3
    assert ratio([0.3 * noise(1, 8192, seed=i) for i in range(5)]) > 3


def test_new_clips_are_flagged_no_more_often_than_chance_has_it(train: list[Tensor], held_out: list[Tensor]) -> None:
    result = of_new_clips(train, held_out, [])
    assert result.expected == pytest.approx(15 / 21)
    assert len(result.flags) <= 6  # 0.7 of each measure are expected
    assert result.generated.distance.shape == result.generated.by_correlation.shape == (15,)
    assert result.held_out.correlation.shape == (20,)


def test_all_pairs_agree_with_the_candidates_on_copies(train: list[Tensor], held_out: list[Tensor]) -> None:
    vectors = embed_clips(LogMel(), train[:30], RATE)
    whole = memorisation(train[:3], train[:30], held_out[:5], RATE, LogMel(), vectors, candidates=None)
    assert whole.generated.by_correlation.tolist() == whole.generated.by_distance.tolist() == [0, 1, 2]
    few = memorisation(train[:3], train[:30], held_out[:5], RATE, LogMel(), vectors, candidates=2)
    assert few.generated.by_correlation.tolist() == [0, 1, 2]
    assert (whole.held_out.correlation >= few.held_out.correlation).all()


def test_correlation_is_its_definition() -> None:
    """Against each shift written out: the stretch of the longer clip, filled up with zeros beyond its ends."""
    short, long = noise(2, 40), noise(2, 100, seed=1)
    filled = torch.nn.functional.pad(long, (39, 39))
    expected = 0.0
    for i in range(139):
        stretch = filled[:, i : i + 40]
        expected = max(expected, abs((short * stretch).sum()).item() / (short.norm() * stretch.norm()).item())
    assert correlation(short, long).item() == pytest.approx(expected, rel=1e-6)
    assert correlation(long, short).item() == pytest.approx(expected, rel=1e-6)


def test_a_crop_of_a_long_recording_is_a_copy() -> None:
    recording = noise(1, 30_000) * torch.linspace(0.01, 1, 30_000)
    assert correlation(-0.2 * recording[:, 2000:9000], recording).item() == pytest.approx(1, abs=1e-6)
    assert correlation(noise(1, 7000, seed=5), recording).item() < 0.1
    assert correlation(torch.zeros(1, 100), recording).item() == 0
    assert correlation(recording[:, :100], torch.zeros(1, 50)).item() == 0
    stereo = recording.expand(2, -1)
    assert correlation(stereo[:, 500:900], recording).item() == pytest.approx(1, abs=1e-6)


def test_silent_clips_have_no_vector(train: list[Tensor], held_out: list[Tensor]) -> None:
    result = of_new_clips(train, held_out, [torch.zeros(1, 8192)])
    assert math.isnan(result.generated.distance[-1])
    assert result.generated.by_distance[-1] == -1
    assert result.generated.correlation[-1] == 0
    assert 15 not in result.flagged


@pytest.mark.parametrize("copied", [True, False])
def test_flagged_clips_are_drawn_above_what_they_copy(
    train: list[Tensor], held_out: list[Tensor], copied: bool
) -> None:
    generated = [*train[5:13]] if copied else [noise(1, 8192, seed=i) for i in range(3)]
    result = memorisation(generated, train, held_out[:8], RATE, LogMel(), candidates=3)
    figure = picture(result, generated, train, RATE)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == (16 if copied else 6)
    assert titles[0].startswith("generated ")
    assert any(title.startswith("training 5, corr. 1.00") for title in titles) == copied
    plt.close(figure)


def test_empty_sets_and_other_vectors_are_refused(train: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="held_out: expected at least one clip"):
        memorisation(train[:2], train, [], RATE, LogMel())
    vectors = embed_clips(LogMel(), train[:5], RATE)
    with pytest.raises(ValueError, match="those of 100 training clips, got 5"):
        memorisation(train[:2], train, train[:2], RATE, LogMel(), vectors)
