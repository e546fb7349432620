"""Distances between generated and real clips as a metric: embeds each clip once, whatever the number of distances."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from audio_diffusion.metrics.distances.agreement import text_agreement
from audio_diffusion.metrics.distances.estimate import Estimate
from audio_diffusion.metrics.embeddings.cache import EmbeddingCache, Vectors
from audio_diffusion.metrics.embeddings.embedding import Embedded, Embedding, embed_clips, join, nothing_of
from audio_diffusion.metrics.metric import Clips, Figure, Metric, Subject, unpadded

#: distance(generated, reference, seed=..) -> one estimate, or several by name; of too few windows, an estimate of NaN
#: with a note. It is called once without any windows when it is built, which checks its options
Distance = Callable[..., Estimate | dict[str, Estimate]]


def _counted(number: int, noun: str) -> str:
    """Formats a number of things: ``1 window``, ``2 windows``."""
    return f"{number} {noun}{'s' * (number != 1)}"


class Distances(Metric):
    """Distances between the embeddings of generated and of real clips.

    Args:
        embedding: turns clips into vectors, one per window.
        measures: distances by name; each is called with the generated and the real windows. ``null`` leaves one out.
        cache: folder in which the vectors of real clips are kept, "auto" for that of the user, None for none.

    Raises:
        ValueError: if there is no distance, or one refuses its options.
    """

    needs = ("real", "generated")

    def __init__(self, embedding: Embedding, measures: Mapping[str, Distance | None], cache: str | None = None):
        self.embedding = embedding
        self.measures = {name: measure for name, measure in measures.items() if measure is not None}
        if not self.measures:
            raise ValueError("measures: expected at least one distance, got none")
        nothing = nothing_of(embedding)
        for name, measure in self.measures.items():
            try:
                measure(nothing, nothing, seed=0)
            except ValueError as error:
                raise ValueError(f"measures.{name}: {error}") from error
        self._subject = Subject(0, 0)
        self._vectors = Vectors(embedding, EmbeddingCache(cache))
        self._estimates: dict[str, Estimate] | None = None

    def start(self, subject: Subject) -> None:
        self._subject, self._estimates = subject, None
        self._vectors.start(subject.sample_rate)

    def update(self, clips: Clips, source: str) -> None:
        self._vectors.add(unpadded(clips), source)
        self._estimates = None

    def forget_generated(self) -> None:
        self._vectors.forget("generated")
        self._estimates = None

    def estimates(self) -> dict[str, Estimate]:
        """The estimates of all distances, by name."""
        if self._estimates is None:
            generated, real = self._vectors.of("generated"), self._vectors.of("real")
            found: dict[str, Estimate] = {}
            for name, measure in self.measures.items():
                measured = measure(generated, real, seed=self._subject.seed)
                found |= {name: measured} if isinstance(measured, Estimate) else measured
            self._estimates = found
        return self._estimates

    def compute(self) -> dict[str, Figure]:
        return {name: Figure(e.value, e.error, e.interval, _note(e)) for name, e in self.estimates().items()}

    def details(self) -> dict[str, Any]:
        silent = {source: self._vectors.of(source).num_silent for source in ("generated", "real")}
        return {
            "embedding": self.embedding.name,
            "silent_windows": silent,
            "estimates": {name: asdict(estimate) for name, estimate in self.estimates().items()},
        }

    def describe(self) -> list[str]:
        generated, real = self._vectors.of("generated"), self._vectors.of("real")
        silent = generated.num_silent + real.num_silent
        lines = [
            f"distances in the space of {self.embedding.name}: {_counted(len(generated), 'window')} of "
            f"{_counted(generated.num_clips, 'generated clip')}, {_counted(len(real), 'window')} of "
            f"{_counted(real.num_clips, 'real clip')}"
            + (f"; without {_counted(silent, 'nearly silent window')}" if silent else "")
        ]
        lines += [f"{'':24}{'value':>12}{'± clips':>12}   {'95 %':22}{'floor':>10}"]
        for name, found in self.estimates().items():
            if math.isnan(found.value):
                lines.append(f"{name:24}{'-':>12}   {found.note}")
                continue
            interval = "-" if found.interval is None else f"{found.interval[0]:.4g} to {found.interval[1]:.4g}"
            error, floor = (f"{value:.3g}" if math.isfinite(value) else "-" for value in (found.error, found.floor))
            lines.append(f"{name:24}{found.value:12.4g}{error:>12}   {interval:22}{floor:>10}   {found.note}".rstrip())
        lines.append("floor: the same figure for one half of the real clips against the other; no model can pass it")
        return [*lines, *([cached] if (cached := self._vectors.cache.describe()) else [])]


class TextAgreement(Metric):
    """Cosine similarity of generated clips and their texts, in the space of a CLAP.

    Args:
        embedding: of audio and texts: ``Pretrained`` with a CLAP.

    Raises:
        ValueError: if the embedding has none of texts.
    """

    needs = ("generated",)

    def __init__(self, embedding: Embedding):
        if getattr(embedding, "kind", "") != "clap":
            raise ValueError(
                f"embedding: expected a CLAP, embedding=pretrained embedding.model=FOLDER_OR_NAME, got {embedding.name}"
            )
        self.embedding: Any = embedding

    def start(self, subject: Subject) -> None:
        self._subject = subject
        self.forget_generated()

    def update(self, clips: Clips, source: str) -> None:
        if not clips.texts:
            raise ValueError("text_agreement: expected clips with texts; this model has no condition that is a text")
        found = embed_clips(self.embedding, unpadded(clips), self._subject.sample_rate)
        self._parts.append((found, list(clips.texts)))

    def forget_generated(self) -> None:
        self._parts: list[tuple[Embedded, list[str]]] = []

    def compute(self) -> dict[str, Figure]:
        if not self._parts:
            return {"text_agreement": Figure(math.nan, note="no generated clips")}
        texts = [text for _, some in self._parts for text in some]
        found = text_agreement(join(part for part, _ in self._parts), texts, self.embedding, seed=self._subject.seed)
        return {"text_agreement": Figure(found.value, found.error, found.interval, _note(found))}

    def details(self) -> dict[str, Any]:
        return {"embedding": self.embedding.name}


def _note(estimate: Estimate) -> str:
    """What a reader needs beside the number."""
    if math.isnan(estimate.value):
        return estimate.note
    parts = [f"{estimate.windows} windows against {estimate.reference_windows}"]
    parts += [f"floor {estimate.floor:.4g}"] if math.isfinite(estimate.floor) else []
    return "; ".join([*parts, *([estimate.note] if estimate.note else [])])
