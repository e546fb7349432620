"""Metrics of a class-conditional model, computed against real audio: accuracy and diversity.

    LabelProbe      does a generated clip sound like its class?
    spread_ratio    do clips of one class differ as much as real ones do?

Distances are Euclidean distances of ``log_mel_features``, in dB. Only `LabelProbe` needs scikit-learn. Copies of
training clips are found by ``memorisation``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

Label = str | int

NUM_MELS = 40
WINDOW_S = 0.064  # long enough that every mel band, the lowest too, holds a bin of the spectrum
FLOOR_DB = -40.0


@dataclass(frozen=True)
class Spread:
    """Diversity: mean distance between clips of one class, generated / real; 0 if all are equal, about 1 if as varied.

    ratio: mean over the classes.   per_class: the ratio of each class.
    """

    ratio: float
    per_class: dict[Label, float]


def log_mel_features(audio: Tensor, sample_rate: int) -> Tensor:
    """Computes log-mel power in dB relative to each clip's maximum: audio [N, C, T] -> float32 [N, 40 * time blocks].

    A block is about 32 ms. Power is averaged over it (and over channels) before the logarithm, so that a
    delay of a few milliseconds, or another draw of noise, changes the features little. Power more than 40 dB
    below the maximum of the clip counts as -40 dB, so that features depend neither on the clip's level nor on
    background hiss. (On drum hits, hiss at -50 dB re full scale reduces the probe's accuracy from 1.00 to 0.59
    with a floor of -60 dB, and leaves it at 1.00 with -40 dB.) Silence is -40 everywhere.

    Raises ValueError unless audio is finite floating point [N, C, T] with no empty dimension.
    """
    _check_audio("audio", audio)
    n_fft = 2 ** round(np.log2(WINDOW_S * sample_rate))
    flat, window = audio.detach().float().cpu().flatten(0, 1), torch.hann_window(n_fft)
    spectrum = torch.stft(flat, n_fft, n_fft // 8, window=window, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square().unflatten(0, audio.shape[:2]).mean(dim=1)  # [N, frequency, frame]
    filters = melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, NUM_MELS, sample_rate)
    mel = functional.avg_pool1d(filters.T @ power, kernel_size=4, ceil_mode=True)
    relative = mel / mel.amax(dim=(1, 2), keepdim=True).clamp(min=1e-10)
    return 10 * relative.clamp(min=10 ** (FLOOR_DB / 10)).log10().flatten(1)


class LabelProbe:
    """A linear classifier of log-mel features, trained on real clips, that predicts the class of generated ones.

    Its accuracy on held-out real clips is the upper limit to compare with; 1 / number of classes is chance.
    All audio must have the same `sample_rate` in Hz, C and T. Raises ImportError without scikit-learn.
    """

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self._classifier: Any = _logistic_regression()
        self._mean = self._scale = torch.empty(0)

    def fit(self, audio: Tensor, labels: Sequence[Label]) -> "LabelProbe":
        """Fits the classifier to audio [N, C, T] and its N labels of at least two classes; returns itself."""
        features = log_mel_features(audio, self.sample_rate)
        _check_labels("labels", labels, len(audio))
        if len(set(labels)) < 2:
            raise ValueError(f"labels must name at least 2 classes; got only {labels[0]!r}")
        self._mean = features.mean(dim=0)
        # A band that is nearly silent in every training clip must not get more weight than the others.
        self._scale = features.std(dim=0).clamp(min=1.0)
        self._classifier.fit(self._standardise(features), np.asarray(labels))
        return self

    def predict(self, audio: Tensor) -> list[Label]:
        """Returns the most likely label of each clip of audio [N, C, T]."""
        if not len(self._mean):
            raise ValueError("LabelProbe must be fitted before it can predict: call fit(audio, labels)")
        features = log_mel_features(audio, self.sample_rate)
        labels: list[Label] = self._classifier.predict(self._standardise(features)).tolist()
        return labels

    def accuracy(self, audio: Tensor, labels: Sequence[Label]) -> float:
        """Returns the fraction, 0..1, of the clips [N, C, T] whose predicted label is correct."""
        _check_labels("labels", labels, len(audio))
        return float(np.mean(np.asarray(self.predict(audio)) == np.asarray(labels)))

    def _standardise(self, features: Tensor) -> Any:
        if features.shape[1] != len(self._mean):
            raise ValueError(
                f"audio must be as long as that of fit; got {features.shape[1]} features a clip, not {len(self._mean)}"
            )
        return ((features - self._mean) / self._scale).numpy()


def spread_ratio(
    generated: Tensor,
    generated_labels: Sequence[Label],
    real: Tensor,
    real_labels: Sequence[Label],
    sample_rate: int,
) -> Spread:
    """Compares the variety within each generated class (audio [N, C, T], N labels) with that of real clips.

    Raises ValueError if a generated class has fewer than two clips, generated or real.
    """
    ours = _class_spreads("generated", generated, generated_labels, sample_rate)
    theirs = _class_spreads("real", real, real_labels, sample_rate)
    if missing := [label for label in ours if not theirs.get(label)]:
        raise ValueError(f"real must hold different clips of every generated class; it does not of {missing}")
    per_class = {label: spread / theirs[label] for label, spread in ours.items()}
    return Spread(sum(per_class.values()) / len(per_class), per_class)


def _class_spreads(name: str, audio: Tensor, labels: Sequence[Label], sample_rate: int) -> dict[Label, float]:
    """Mean distance in dB between two clips of each class."""
    features = log_mel_features(audio, sample_rate)
    _check_labels(f"{name}_labels", labels, len(audio))
    spreads = {}
    for label in dict.fromkeys(labels):
        members = features[[other == label for other in labels]]
        if len(members) < 2:
            raise ValueError(f"{name} must hold at least 2 clips of each class; it holds 1 of {label!r}")
        spreads[label] = torch.pdist(members).mean().item()
    return spreads


def _logistic_regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("LabelProbe needs scikit-learn: pip install scikit-learn") from error
    return LogisticRegression(C=0.1, max_iter=1000)


def _check_audio(name: str, audio: Tensor) -> None:
    if audio.ndim != 3 or not audio.numel() or not audio.is_floating_point():
        raise ValueError(f"{name} must be floating point [N, C, T]; got {audio.dtype} {list(audio.shape)}")
    if bad := int((~audio.isfinite()).flatten(1).any(dim=1).sum()):
        raise ValueError(f"{name} must be finite; {bad} of {len(audio)} clips hold NaN or infinity")


def _check_labels(name: str, labels: Sequence[Label], count: int) -> None:
    if len(labels) != count:
        raise ValueError(f"{name} must be one a clip, {count} in all; got {len(labels)}")
