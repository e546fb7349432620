"""What generated clips are worth: KAD by two embeddings, and the share that a classifier names as asked."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from corpora import Corpus
from torch import Tensor

from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.embeddings.embedding import Embedded, Embedding, embed_clips
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.embeddings.yamnet import YAMNet
from audio_diffusion.metrics.labelled import LabelProbe

PROBE_CLIPS = 2000  # training clips that the classifier is fitted on


@cache
def embeddings() -> dict[str, Embedding]:
    """The embeddings that can be had here, the headline first."""
    found: dict[str, Embedding] = {}
    try:
        found["yamnet"] = YAMNet()
    except ValueError as error:
        print(f"left out: {error}", flush=True)
    return {**found, "log_mel": LogMel()}


class Judge:
    """Compares clips with the test split of a corpus.

    Args:
        corpus: the corpus.
        num_reference: largest number of crops of the test split.
    """

    def __init__(self, corpus: Corpus, num_reference: int):
        self.corpus, self.rate = corpus, corpus.options["sample_rate"]
        self.real, self.labels = corpus.crops("test", num_reference)
        self._reference: dict[str, Embedded] = {}
        self._probe: LabelProbe | None = None

    def labels_for(self, count: int) -> list[str]:
        """Labels of clips to generate: those of the test split, evenly."""
        return [self.labels[i * len(self.labels) // count] for i in range(count)]

    def distances(self, clips: Tensor) -> dict[str, dict[str, Any]]:
        """KAD by each embedding, with interval, floor and counts."""
        found = {}
        for name, embedding in embeddings().items():
            if name not in self._reference:
                self._reference[name] = embed_clips(embedding, self.real, self.rate)
            estimate = kad(embed_clips(embedding, clips.clamp(-1, 1), self.rate), self._reference[name])
            found[name] = {name: _plain(value) for name, value in asdict(estimate).items()}
            found[name]["embedding"] = embedding.name
        return found

    def accuracy(self, clips: Tensor, labels: Sequence[str]) -> float | None:
        """Share of clips that are named as asked; None without classes."""
        if not self.corpus.classes:
            return None
        if self._probe is None:
            self._probe = LabelProbe(self.rate).fit(*self.corpus.crops("train", PROBE_CLIPS, seed=2))
        return self._probe.accuracy(clips.clamp(-1, 1), list(labels))

    def real_rows(self, count: int) -> dict[str, Any]:
        """The same figures of as many training clips; the accuracy is that of the test clips."""
        clips, _ = self.corpus.crops("train", count, seed=1)
        return {"kad": self.distances(clips), "accuracy": self.accuracy(self.real, self.labels)}


def _plain(value: Any) -> Any:
    """The value as JSON has it: None in place of NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
