"""Augmentation follows from the seed alone, and does what its options say."""

import math

import pytest
import torch

from audio_diffusion.data.transforms import Augment


def changed(augment: Augment, seed: int) -> torch.Tensor:
    audio = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    augment(audio, seed)
    return audio


def test_a_seed_gives_the_same_change_and_seeds_give_different_ones() -> None:
    augment = Augment((-12, 6), invert=True, swap_channels=True)
    results = [changed(augment, seed) for seed in range(20)]
    assert all(torch.equal(changed(augment, seed), result) for seed, result in enumerate(results))
    assert len({tuple(result.flatten().tolist()) for result in results}) == 20


def test_gains_cover_their_range_evenly_and_keep_the_signal() -> None:
    gains = []
    for seed in range(400):
        audio = changed(Augment((-12, 6)), seed)
        assert torch.allclose(audio / audio[0, 0], torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
        gains.append(20 * math.log10(audio[0, 0]))
    assert -12 <= min(gains) < -11.5
    assert 5.5 < max(gains) <= 6
    assert sum(gains) / 400 == pytest.approx(-3, abs=0.8)


def test_half_of_the_crops_are_inverted_and_half_swapped_independently() -> None:
    counts = {(False, False): 0, (False, True): 0, (True, False): 0, (True, True): 0}
    for seed in range(400):
        audio = changed(Augment(invert=True, swap_channels=True), seed)
        counts[bool(audio[0, 0] < 0), bool(audio[0].abs()[0] == 4)] += 1
    assert all(70 < count < 130 for count in counts.values())


def test_nothing_asked_for_changes_nothing() -> None:
    assert not Augment()
    assert torch.equal(changed(Augment(), 3), torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
    assert all([Augment((-1, 0)), Augment(invert=True), Augment(swap_channels=True)])


@pytest.mark.parametrize("gain_db", [(3, -3), (0,), (0, 1, 2), (-100, 0), (0, 61), (float("nan"), 0)])
def test_ranges_that_are_none_are_refused(gain_db: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="gain_db: expected"):
        Augment(gain_db)
