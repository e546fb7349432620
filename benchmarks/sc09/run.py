"""The table of SC09: Fréchet distance and inception score of generated digits, by a classifier.

    python sample.py ckpt=runs/sc09 num_samples=2048 batch_size=64
    python benchmarks/sc09/run.py runs/sc09/generated data/sc09 --classifier CLASSIFIER.pt

The classifier is a TorchScript file, which is a program: take one that you trust. It is given audio ``[B, 1, 16000]``
at 16 kHz and returns (features ``[B, D]``, logits ``[B, classes]``). The published figures are of a ResNeXt trained on
Speech Commands (Goel et al. 2022, arXiv:2202.09729, appendix), of 2,048 samples against the training clips: DiffWave
FID 1.92, IS 5.26; SaShiMi's network 1.42, 5.94. They compare only by the same classifier.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from audio_diffusion.data.audio.reading import read_crop
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.metrics.frechet import frechet_distance, inception_score

RATE, LENGTH, BATCH = 16_000, 16_000, 64


def generated(folder: Path) -> Iterator[Tensor]:
    """Clips ``[1, T]`` of a folder of .wav files.

    Raises:
        ValueError: if there are none.
    """
    files = sorted(folder.glob("*.wav"))
    if not files:
        raise ValueError(f"generated: expected a folder of .wav files, got {str(folder)!r}")
    for file in files:
        audio = torch.empty(1, LENGTH)
        read_crop(file, audio, RATE)
        yield audio


def real(data: str) -> Iterator[Tensor]:
    """The training clips ``[1, T]`` of shards."""
    shards = Shards.open([f"{data}/train-*.tar"], RemoteStore(None))
    return (audio for clip, audio in read_in_order(shards, RATE, 1, LENGTH, []) if clip.num_valid)


@torch.no_grad()
def seen(classifier: torch.jit.ScriptModule, clips: Iterator[Tensor], device: str) -> tuple[Tensor, Tensor]:
    """Features ``[N, D]`` and logits ``[N, classes]`` of all clips."""
    parts = []
    while batch := list(islice(clips, BATCH)):
        features, logits = classifier(torch.stack(batch).to(device))
        parts.append((features.float().cpu(), logits.float().cpu()))
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits


def main(arguments: list[str] | None = None) -> None:
    """Classify both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, help="folder of generated .wav files")
    parser.add_argument("data", help="folder of shards with train-*.tar")
    parser.add_argument("--classifier", required=True, help="TorchScript file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    classifier = torch.jit.load(options.classifier, map_location=options.device).eval()
    features, logits = seen(classifier, generated(options.generated), options.device)
    reference, real_logits = seen(classifier, real(options.data), options.device)
    print(f"{'':10}{'clips':>8}{'FID':>10}{'IS':>8}")
    print(f"{'real':10}{len(reference):8}{0:10.3f}{inception_score(real_logits):8.3f}")
    print(
        f"{'generated':10}{len(features):8}{frechet_distance(features, reference):10.3f}{inception_score(logits):8.3f}"
    )


if __name__ == "__main__":
    main()
