"""Metrics of classes: accuracy, FID, IS, mIS and AM score, by a classifier of real clips."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audio_diffusion.metrics.classifier import fit, held_out_logits
from audio_diffusion.metrics.embeddings.cache import EmbeddingCache, Vectors
from audio_diffusion.metrics.embeddings.embedding import Embedding
from audio_diffusion.metrics.frechet import am_score, frechet_distance, inception_score, modified_inception_score
from audio_diffusion.metrics.metric import Clips, Figure, Metric, Subject, unpadded

LEAST = 5  # labelled real clips of a class
_REPLICATES = 200  # of the bootstrap over clips


class _Judged(NamedTuple):
    """The predictions of the classifier.

    classes: names, in the order of the logits.   real: held-out logits of the real clips, and their classes.
    generated: logits of the generated clips, those without a vector left out.   asked, named: classes of the generated
        clips that have one of ``classes``, as asked and as named; -1 for a clip without a vector.
    """

    classes: list[str]
    real: Tensor
    real_labels: Tensor
    generated: Tensor
    asked: Tensor
    named: Tensor


class Classes(Metric):
    """Figures of generated clips by a classifier: multinomial logistic regression of the mean vectors of real clips.

    - ``class_accuracy``: share of the generated clips that are named as the class they were generated for.
    - ``class_accuracy_real``: the same for real clips that the classifier was not fitted to: what can be expected.
    - ``fid``: Fréchet distance of the logits of generated clips from those of held-out real ones.
    - ``inception_score`` and ``modified_inception_score``: certainty together with variety, of all and within classes.
    - ``am_score``: certainty together with classes as frequent as in the real clips; less is better.

    Real clips are judged by cross-validation. A figure that cannot be measured, as labels are missing, is NaN and says
    why.

    Args:
        embedding: turns clips into vectors.
        penalty: of the classifier's squared weights.
        folds: of the cross-validation.
        cache: folder in which the vectors of real clips are kept, "auto" for that of the user, None for none.

    Raises:
        ValueError: if ``penalty`` is not positive, or ``folds`` is below 2.
    """

    needs = ("real", "generated")

    def __init__(self, embedding: Embedding, penalty: float = 10.0, folds: int = 5, cache: str | None = None):
        if not 0 < penalty < math.inf:
            raise ValueError(f"penalty: expected a positive number, got {penalty}")
        if folds < 2:
            raise ValueError(f"folds: expected at least 2, got {folds}")
        self.embedding, self.penalty, self.folds = embedding, penalty, folds
        self._vectors = Vectors(embedding, EmbeddingCache(cache))
        self._subject = Subject(0, 0)
        self._labels: dict[str, list[str | None]] = {source: [] for source in self.needs}
        self._judged: _Judged | str | None = None  # or why there is nothing

    def start(self, subject: Subject) -> None:
        self._subject, self._judged = subject, None
        self._labels = {source: [] for source in self.needs}
        self._vectors.start(subject.sample_rate)

    def update(self, clips: Clips, source: str) -> None:
        labels = [label for label, mask in zip(clips.labels, clips.mask, strict=True) if mask.any()]
        self._vectors.add(unpadded(clips), source)
        self._labels[source] += labels
        self._judged = None

    def forget_generated(self) -> None:
        self._vectors.forget("generated")
        self._labels["generated"], self._judged = [], None

    def _found(self) -> _Judged | str:
        if self._judged is None:
            self._judged = self._judge()
        return self._judged

    def _judge(self) -> _Judged | str:
        """Fits the classifier and judges all clips; returns why not if labels are missing."""
        real = self._vectors.of("real").clip_means()
        known = real.isfinite().all(1)
        usable = [label if ok else None for label, ok in zip(self._labels["real"], known.tolist(), strict=True)]
        counts = Counter(label for label in usable if label is not None)
        classes = sorted(label for label, count in counts.items() if count >= LEAST)
        if len(classes) < 2:
            have = ", ".join(f"{label} {count}" for label, count in counts.most_common(5)) or "no label"
            return f"expected at least 2 classes with {LEAST} labelled real clips each; the real clips have: {have}"

        number = {label: i for i, label in enumerate(classes)}
        chosen = [i for i, label in enumerate(usable) if label in number]
        vectors, labels = real[chosen], torch.tensor([number[str(usable[i])] for i in chosen])
        of_real = held_out_logits(vectors, labels, len(classes), self.penalty, self.folds, self._subject.seed)
        made = self._vectors.of("generated").clip_means()
        has_vector = made.isfinite().all(1)
        logits = torch.full((len(made), len(classes)), math.nan, dtype=torch.float64)
        if len(made):
            logits[has_vector] = fit(vectors, labels, len(classes), self.penalty).logits(made[has_vector])
        asked = torch.tensor([number.get(str(label), -1) for label in self._labels["generated"]], dtype=torch.int64)
        named = torch.where(has_vector, logits.nan_to_num().argmax(1), -1)
        return _Judged(classes, of_real, labels, logits[has_vector], asked[asked >= 0], named[asked >= 0])

    def compute(self) -> dict[str, Figure]:
        found = self._found()
        if isinstance(found, str):
            return {"class_accuracy": Figure(math.nan, note=found)}
        real = found.real.argmax(1) == found.real_labels
        chance = f"{len(found.classes)} classes, by chance {1 / len(found.classes):.2g}"
        figures = {"class_accuracy": _share(found.named == found.asked, "generated clips have no labels", chance)}
        figures["class_accuracy_real"] = _share(real, "", f"real clips, by cross-validation; {chance}")
        scores: dict[str, Callable[[Tensor], float]] = {
            "fid": lambda logits: frechet_distance(logits, found.real),
            "inception_score": inception_score,
            "modified_inception_score": modified_inception_score,
            "am_score": lambda logits: am_score(logits, found.real),
        }
        for name, score in scores.items():
            figures[name] = self._score(found, score, of_real=name != "fid")
        return figures

    def _score(self, found: _Judged, score: Callable[[Tensor], float], of_real: bool) -> Figure:
        """A score with its bootstrap interval over clips, beside that of held-out real clips."""
        least = 2 * len(found.classes)
        if len(found.generated) < least:
            return Figure(math.nan, note=f"needs {least} clips, two for each class; {len(found.generated)} are usable")
        try:
            value = score(found.generated)
            note = f"{len(found.generated)} clips against {len(found.real)}"
            note = f"real clips: {score(found.real):.4g}" if of_real else note
        except ValueError as error:
            return Figure(math.nan, note=str(error))
        generator = torch.Generator().manual_seed(self._subject.seed)
        replicates = []
        for _ in range(_REPLICATES):
            drawn = torch.randint(len(found.generated), (len(found.generated),), generator=generator)
            try:
                replicates.append(score(found.generated[drawn]))
            except ValueError:  # no class was drawn twice
                continue
        spread = torch.tensor(replicates, dtype=torch.float64)
        low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Figure(value, spread.std().item(), (low, high), note)

    def details(self) -> dict[str, Any]:
        found = self._found()
        if isinstance(found, str):
            return {"embedding": self.embedding.name}
        return {"embedding": self.embedding.name, "classes": _per_class(found.classes, found.asked, found.named)}

    def describe(self) -> list[str]:
        found = self._found()
        lines = [f"classes, by a classifier of real clips in the space of {self.embedding.name}:", *super().describe()]
        if not isinstance(found, str):
            for name, row in _per_class(found.classes, found.asked, found.named).items():
                others = ", ".join(f"{other} {count}" for other, count in row["named"].items() if other != name)
                lines.append(
                    f"  {name:20} {row['accuracy']:6.1%} of {row['clips']}{f'; others: {others}' * bool(others)}"
                )
        return [*lines, *([cached] if (cached := self._vectors.cache.describe()) else [])]


def _per_class(classes: Sequence[str], asked: Tensor, named: Tensor) -> dict[str, dict[str, Any]]:
    """For each class that was asked for: number of clips, share that was named so, and what the clips were named."""
    rows = {}
    for number, name in enumerate(classes):
        found = named[asked == number].tolist()
        if found:
            counts = Counter("nearly silent" if i < 0 else classes[i] for i in found)
            accuracy = counts[name] / len(found)
            rows[name] = {"clips": len(found), "accuracy": accuracy, "named": dict(counts.most_common())}
    return rows


def _share(hits: Tensor, missing: str, note: str) -> Figure:
    """A share with its standard error and Wilson's 95 % interval."""
    count = len(hits)
    if not count:
        return Figure(math.nan, note=missing)
    share, z = hits.double().mean().item(), 1.96
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    interval = (max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))
    return Figure(share, math.sqrt(share * (1 - share) / count), interval, f"of {count}; {note}")
