"""Five classifiers of real drum hits name generated ones, and the noise around their tones is measured.

    python sample.py ckpt=runs/quickstart num_samples=100 output=hits
    python benchmarks/judges.py hits [OTHER ..]

The classifiers are as different as they can be at this size: logistic regression on a log-mel spectrogram, the
nearest centroid of each band's mean and deviation, a random forest, a small convolutional network, and the one of
`make learnt`. They are fitted on 800 hits that are synthesised here, and first name 200 others. The class that was
asked for is read from a file's name. Noise is the median power of the bins of a band, in windows of 0.128 s of which
the first begins 60 ms after the start, relative to the strongest bin.
"""

import argparse
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_diffusion.metrics.labelled import LabelProbe
from audio_diffusion.packing.datasets.drums import CLASSES, SAMPLE_RATE, hits

import soundfile as sf  # isort: skip
import torch  # isort: skip
import torch.nn.functional as F  # isort: skip
from sklearn.ensemble import RandomForestClassifier  # isort: skip
from sklearn.linear_model import LogisticRegression  # isort: skip
from torch import Tensor, nn  # isort: skip
from torchaudio.transforms import MelSpectrogram  # isort: skip

BANDS_HZ = ((300, 800), (800, 7000))
Judge = Callable[[Tensor], list[str]]


@dataclass(frozen=True)
class Hits:
    """Hits ``[N, 1, T]`` and their classes."""

    audio: Tensor
    labels: list[str]


def real(per_class: int, seed: int, num_samples: int) -> Hits:
    """Synthesises real hits."""
    found = [(label, audio) for _, label, audio in hits(per_class, seed, num_samples=num_samples)]
    return Hits(torch.from_numpy(np.stack([a for _, a in found]))[:, None], [label for label, _ in found])


def generated(folder: Path) -> Hits:
    """Reads the hits of a folder.

    Raises:
        SystemExit: if there are none.
    """
    named = [(path, re.search("|".join(CLASSES), path.name)) for path in sorted(folder.glob("*.wav"))]
    if not any(match for _, match in named):
        raise SystemExit(f"{folder}: expected files such as 000_kick.wav, found {len(named)} WAV files without a class")
    clips = [torch.from_numpy(sf.read(path, dtype="float32")[0])[None] for path, match in named if match]
    return Hits(torch.stack(clips), [match[0] for _, match in named if match])


def decibels(audio: Tensor, n_fft: int, num_mels: int) -> Tensor:
    """Log-mel spectrogram ``[N, num_mels, frames]`` in dB."""
    mel = MelSpectrogram(SAMPLE_RATE, n_fft, hop_length=160, n_mels=num_mels)
    return 10 * mel(audio[:, 0]).clamp(min=1e-8).log10()


def spectrogram(audio: Tensor) -> np.ndarray:
    """The log-mel spectrogram, every fourth frame, ``[N, F]``."""
    return decibels(audio, 512, 48)[:, :, ::4].flatten(1).numpy()


def statistics(audio: Tensor) -> np.ndarray:
    """Mean and deviation of each band over time, down to 50 dB below the maximum, ``[N, F]``."""
    mel = decibels(audio, 1024, 64)
    mel = (mel - mel.amax((1, 2), keepdim=True)).clamp(min=-50)
    return torch.cat([mel.mean(2), mel.std(2)], dim=1).numpy()


def fit_linear(train: Hits) -> Judge:
    """Logistic regression on the log-mel spectrogram."""
    x = spectrogram(train.audio)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    model = LogisticRegression(max_iter=2000, C=0.01).fit((x - mean) / scale, train.labels)
    return lambda audio: list(model.predict((spectrogram(audio) - mean) / scale))


def fit_centroid(train: Hits) -> Judge:
    """The nearest mean of a class, by statistics of the bands."""
    x, labels = statistics(train.audio), np.array(train.labels)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    centers = np.stack([((x - mean) / scale)[labels == name].mean(0) for name in CLASSES])

    def judge(audio: Tensor) -> list[str]:
        standard = (statistics(audio) - mean) / scale
        return [CLASSES[i] for i in ((standard[:, None] - centers) ** 2).sum(-1).argmin(1)]

    return judge


def fit_forest(train: Hits) -> Judge:
    """300 trees on the log-mel spectrogram."""
    model = RandomForestClassifier(300, random_state=0).fit(spectrogram(train.audio), train.labels)
    return lambda audio: list(model.predict(spectrogram(audio)))


def fit_cnn(train: Hits) -> Judge:
    """Three strided convolutions over the log-mel spectrogram, trained for 12 epochs."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    images = lambda audio: (decibels(audio, 512, 48)[:, None] + 40) / 25  # noqa: E731
    x, y = images(train.audio), torch.tensor([CLASSES.index(label) for label in train.labels])
    for _ in range(12):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    net.eval()

    @torch.no_grad()
    def judge(audio: Tensor) -> list[str]:
        return [CLASSES[i] for i in net(images(audio)).argmax(1).tolist()]

    return judge


def noise_db(audio: Tensor) -> list[Tensor]:
    """Noise of each clip ``[N]`` in each of ``BANDS_HZ``, relative to the strongest bin."""
    size = round(0.128 * SAMPLE_RATE)
    start = round(0.06 * SAMPLE_RATE)
    windows = audio[:, 0, start : start + 2 * size].unfold(-1, size, size // 4) * torch.hann_window(size)
    power = torch.fft.rfft(windows).abs().square().mean(1)
    per_bin = SAMPLE_RATE / size
    bands = [power[:, round(low / per_bin) : round(high / per_bin)] for low, high in BANDS_HZ]
    return [10 * (band.median(1).values / power.amax(1)).log10() for band in bands]


def report(name: str, judges: dict[str, Judge], given: Hits) -> None:
    """Prints what the judges say."""
    print(f"{name}: {len(given.labels)} hits")
    for judge, name_all in judges.items():
        pairs = list(zip(given.labels, name_all(given.audio), strict=True))
        wrong = Counter(f"{asked} named {named}" for asked, named in pairs if asked != named)
        mistakes = ", ".join(f"{text} {count} times" for text, count in wrong.most_common())
        print(f"    {judge:20} {1 - wrong.total() / len(pairs):7.1%}   {mistakes}")
    for label in ("kick", "tom"):
        chosen = given.audio[[other == label for other in given.labels]]
        if len(chosen):
            levels = ", ".join(
                f"{low} to {high} Hz {band.median():.1f} dB"
                for (low, high), band in zip(BANDS_HZ, noise_db(chosen), strict=True)
            )
            print(f"    noise around the tones of {label}: {levels}")


def main() -> None:
    """Fit, name, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of generated hits")
    folders = {str(folder): generated(folder) for folder in parser.parse_args().folders}
    warnings.filterwarnings("ignore", message=".*all zero values.*")  # of a mel filter narrower than a bin
    for length in {given.audio.shape[-1] for given in folders.values()}:
        train, held_out = real(160, 0, length), real(40, 777, length)
        judges = {
            "logistic regression": fit_linear(train), "nearest centroid": fit_centroid(train),
            "random forest": fit_forest(train), "CNN": fit_cnn(train),
            "make learnt": LabelProbe(SAMPLE_RATE).fit(train.audio, train.labels).predict,
        }  # fmt: skip
        report("real hits", judges, held_out)
        for name, given in folders.items():
            if given.audio.shape[-1] == length:
                report(name, judges, given)


if __name__ == "__main__":
    main()
