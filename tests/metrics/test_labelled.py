"""Class-conditional metrics on drum hits: real ones score as real, copies and collapsed sets are found."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.labelled import LabelProbe, log_mel_features, spread_ratio
from audio_diffusion.packing.datasets import drums

RATE = 16_000
Clips = tuple[Tensor, list[str]]


def make_clips(hits_per_class: int, seed: int) -> Clips:
    """Audio [N, 1, 8192] and N labels."""
    _, labels, audio = zip(*drums.hits(hits_per_class, seed), strict=True)
    return torch.from_numpy(np.stack(audio))[:, None], list(labels)


@pytest.fixture(scope="module")
def train() -> Clips:
    return make_clips(100, seed=0)


@pytest.fixture(scope="module")
def held_out() -> Clips:
    return make_clips(40, seed=1)


@pytest.fixture(scope="module")
def probe(train: Clips) -> LabelProbe:
    return LabelProbe(RATE).fit(*train)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_probe_names_held_out_hits(probe: LabelProbe, held_out: Clips) -> None:
    audio, labels = held_out
    assert probe.accuracy(audio, labels) >= 0.97
    assert set(probe.predict(audio)) == set(drums.CLASSES)
    assert probe.accuracy(audio, labels[1:] + labels[:1]) < 0.1  # the wrong labels


def test_probe_forgives_level_and_hiss(probe: LabelProbe, held_out: Clips) -> None:
    audio, labels = held_out
    assert probe.accuracy(0.05 * audio, labels) >= 0.97
    assert probe.accuracy(audio + 0.003 * normal(*audio.shape), labels) >= 0.97


def test_probe_knows_whole_number_labels(train: Clips, held_out: Clips) -> None:
    numbers = [drums.CLASSES.index(label) for label in train[1][:200]]
    probe = LabelProbe(RATE).fit(train[0][:200], numbers)
    assert probe.accuracy(held_out[0], [drums.CLASSES.index(label) for label in held_out[1]]) > 0.9


def test_real_clips_are_as_varied_as_real_ones(train: Clips, held_out: Clips) -> None:
    spread = spread_ratio(*held_out, *train, RATE)
    assert set(spread.per_class) == set(drums.CLASSES)
    assert all(0.8 < ratio < 1.2 for ratio in spread.per_class.values())
    assert spread.ratio == pytest.approx(sum(spread.per_class.values()) / 5)


def test_a_collapsed_set_is_found(train: Clips, held_out: Clips) -> None:
    one_of_each, labels = held_out[0][:5], held_out[1][:5]
    collapsed = one_of_each.repeat(8, 1, 1)
    assert spread_ratio(collapsed, labels * 8, *train, RATE).ratio == 0
    noisy = collapsed + 1e-3 * normal(*collapsed.shape)
    assert spread_ratio(noisy, labels * 8, *train, RATE).ratio < 0.3


def test_one_collapsed_class_shows(train: Clips, held_out: Clips) -> None:
    audio = held_out[0].clone()
    audio[2::5] = audio[2]
    spread = spread_ratio(audio, held_out[1], *train, RATE)
    assert spread.per_class["kick"] == 0
    assert min(ratio for label, ratio in spread.per_class.items() if label != "kick") > 0.8


def test_features_are_bounded_and_blind_to_level(held_out: Clips) -> None:
    audio = held_out[0][:10]
    features = log_mel_features(audio, RATE)
    assert features.shape == (10, 40 * 17)
    assert features.amax(dim=1).tolist() == [0.0] * 10
    assert features.min() == -40
    torch.testing.assert_close(log_mel_features(0.01 * audio, RATE), features, atol=1e-3, rtol=0)
    torch.testing.assert_close(log_mel_features(torch.cat([audio, -audio], dim=1), RATE), features)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sample_rate", [8000, 22_050, 44_100, 48_000])
def test_features_at_other_rates(sample_rate: int) -> None:
    assert torch.isfinite(log_mel_features(normal(2, 2, 3000), sample_rate)).all()


def test_silence_has_features() -> None:
    assert (log_mel_features(torch.zeros(1, 1, 2000), RATE) == -40).all()


def test_scikit_learn_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        LabelProbe(RATE)


def test_bad_audio_is_refused() -> None:
    with pytest.raises(ValueError, match=r"floating point \[N, C, T\]; got torch.float32 \[2, 8\]"):
        log_mel_features(torch.zeros(2, 8), RATE)
    with pytest.raises(ValueError, match=r"got torch.int16"):
        log_mel_features(torch.zeros(2, 1, 8, dtype=torch.int16), RATE)
    with pytest.raises(ValueError, match="finite; 1 of 2 clips"):
        log_mel_features(torch.tensor([[[0.0, 1.0]], [[0.0, torch.nan]]]), RATE)


def test_bad_labels_are_refused(probe: LabelProbe, held_out: Clips) -> None:
    audio = held_out[0][:10]
    with pytest.raises(ValueError, match="labels must be one a clip, 10 in all; got 3"):
        LabelProbe(RATE).fit(audio, ["a", "b", "c"])
    with pytest.raises(ValueError, match="at least 2 classes; got only 'a'"):
        LabelProbe(RATE).fit(audio, ["a"] * 10)
    with pytest.raises(ValueError, match="call fit"):
        LabelProbe(RATE).predict(audio)
    with pytest.raises(ValueError, match="as long as that of fit"):
        probe.predict(audio[..., :4000])


def test_sets_that_cannot_be_compared_are_refused(held_out: Clips) -> None:
    audio, labels = held_out[0][:10], held_out[1][:10]
    with pytest.raises(ValueError, match="generated must hold at least 2 clips of each class; it holds 1 of"):
        spread_ratio(audio[:6], labels[:6], audio, labels, RATE)
    with pytest.raises(ValueError, match="every generated class; it does not of"):
        spread_ratio(audio, ["new"] * 10, audio, labels, RATE)
