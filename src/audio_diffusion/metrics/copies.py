"""Memorisation as a metric: looks for generated clips that are copies of training clips."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.metrics import pictures
from audio_diffusion.metrics.embeddings.cache import EmbeddingCache, Vectors
from audio_diffusion.metrics.embeddings.embedding import Embedding
from audio_diffusion.metrics.memorisation import CANDIDATES, Memorisation, compare, picture
from audio_diffusion.metrics.metric import SOURCES, Clips, Figure, Metric, Subject, unpadded

MOST_LISTED = 8  # flags that are printed


class Copies(Metric):
    """The nearest training clip of each generated clip, beside the same for held-out clips.

    Keeps all clips in memory.

    Args:
        embedding: gives the distances, and the candidates for the comparison of waveforms.
        candidates: number of training clips, the nearest by embedding, whose waveforms are compared with a clip; None
            for all of them.
        cache: folder in which the vectors of real and training clips are kept, "auto" for that of the user, None for
            none.
    """

    needs = SOURCES

    def __init__(self, embedding: Embedding, candidates: int | None = CANDIDATES, cache: str | None = None):
        check_at_least_one(candidates=candidates)
        self.embedding, self.candidates = embedding, candidates
        self._vectors = Vectors(embedding, EmbeddingCache(cache))

    def start(self, subject: Subject) -> None:
        self._sample_rate = subject.sample_rate
        self._vectors.start(subject.sample_rate)
        self._audio: dict[str, list[Tensor]] = {source: [] for source in SOURCES}
        self._names: dict[str, list[str]] = {source: [] for source in SOURCES}
        self._result: Memorisation | None = None

    def update(self, clips: Clips, source: str) -> None:
        audio = unpadded(clips)
        names = [name for name, mask in zip(clips.names, clips.mask, strict=True) if mask.any()]
        self._vectors.add(audio, source)
        self._result = None
        self._audio[source] += audio
        self._names[source] += names

    def forget_generated(self) -> None:
        self._audio["generated"], self._names["generated"], self._result = [], [], None
        self._vectors.forget("generated")

    def _missing(self) -> str:
        return ", ".join(source for source in SOURCES if not self._audio[source])

    def _found(self) -> Memorisation:
        if self._result is None:
            of = self._vectors.of
            clips = self._audio["generated"], self._audio["train"], self._audio["real"]
            self._result = compare(clips, (of("generated"), of("train"), of("real")), self.candidates)
        return self._result

    def compute(self) -> dict[str, Figure]:
        if missing := self._missing():
            return {"copies": Figure(float("nan"), note=f"no clips: {missing}")}
        found, count = self._found(), len(self._audio["generated"])
        expected = f"of {count}; clips as new as held-out ones would have about {found.expected:.2g} by each measure"
        figures = {"copies": Figure(len(found.flagged), note=expected)}
        for source, nearest in (("", found.generated), ("_held_out", found.held_out)):
            known = nearest.distance[nearest.distance.isfinite()]
            if len(known):
                figures[f"nearest_distance{source}"] = Figure(known.median().item(), note="median")
            figures[f"correlation{source}"] = Figure(nearest.correlation.median().item(), note="median")
            figures[f"correlation_max{source}"] = Figure(nearest.correlation.max().item())
        return figures

    def details(self) -> dict[str, Any]:
        if self._missing():
            return {"embedding": self.embedding.name}
        flags = [
            {**asdict(f), "clip": self._names["generated"][f.clip], "nearest": self._names["train"][f.nearest]}
            for f in self._found().flags
        ]
        return {"embedding": self.embedding.name, "flags": flags}

    def describe(self) -> list[str]:
        lines = [f"copies of training clips, in the space of {self.embedding.name}:", *super().describe()]
        flags = self.details().get("flags", [])
        lines += [
            f"  {flag['clip']} resembles {flag['nearest']} more than any held-out clip resembles a training clip, by "
            f"{flag['measure']}: {flag['value']:.3g} (held-out: {flag['limit']:.3g})"
            for flag in flags[:MOST_LISTED]
        ]
        lines += [f"  and {len(flags) - MOST_LISTED} more: see evaluation.json"] if len(flags) > MOST_LISTED else []
        return lines

    def draw(self, folder: Path) -> dict[str, Path]:
        if self._missing():
            return {}
        figure = picture(self._found(), self._audio["generated"], self._audio["train"], self._sample_rate)
        return {"nearest training clips": pictures.save(figure, folder / "copies.png")}
