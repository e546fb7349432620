"""Detects copies of training clips, by comparing nearest training clips of generated and of held-out clips."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import Embedded, Embedding, embed_clips
from audio_diffusion.metrics.pictures import Row, sample_grid

CANDIDATES = 20
MOST_DRAWN = 8
_QUIET = 1e-3  # parts of a clip that are quieter than -60 dB relative to its loudest part are not compared


@dataclass(frozen=True)
class Nearest:
    """The nearest training clips of N clips.

    Attributes:
        distance: Euclidean distance of the mean vectors, float64 ``[N]``; NaN for a nearly silent clip, which has none.
        by_distance: index of the training clip at that distance, int64 ``[N]``; -1 for a clip without a vector.
        correlation: largest |normalised cross-correlation| with a training clip at any shift, 0..1, float64 ``[N]``;
            1 is a copy, whatever its gain, polarity and shift.
        by_correlation: index of the training clip with that correlation, int64 ``[N]``.
    """

    distance: Tensor
    by_distance: Tensor
    correlation: Tensor
    by_correlation: Tensor


@dataclass(frozen=True)
class Flag:
    """A generated clip that is nearer to a training clip than held-out clips are.

    Attributes:
        clip: index of the generated clip.
        nearest: index of the training clip.
        measure: ``"embedding"`` or ``"waveform"``.
        value: its distance, or its correlation.
        limit: the smallest distance, or largest correlation, of the held-out clips.
    """

    clip: int
    nearest: int
    measure: str
    value: float
    limit: float

    def __str__(self) -> str:
        """One line for a log."""
        if self.measure == "embedding":
            return f"generated {self.clip} ~ training {self.nearest}: distance {self.value:.3g} < {self.limit:.3g}"
        return f"generated {self.clip} ~ training {self.nearest}: correlation {self.value:.3f} > {self.limit:.3f}"


@dataclass(frozen=True)
class Memorisation:
    """Nearest training clips of generated clips and of held-out ones, and what follows.

    Attributes:
        generated: of the generated clips.
        held_out: of the held-out clips, which are new by definition: what chance and the kind of sound alone give.
        flags: generated clips that are nearer than *every* held-out clip, by either measure.
        expected: number of flags of each measure if generated clips are as new as held-out ones: N / (M + 1) for N
            generated and M held-out clips.
    """

    generated: Nearest
    held_out: Nearest
    flags: list[Flag]
    expected: float

    @property
    def distance_ratio(self) -> float:
        """Median distance of the generated clips from their nearest training clips, over that of the held-out ones:
        about 1 if they are as new as real clips, near 0 for copies, well above 1 if they are unlike any real clip."""
        ours, theirs = (of.distance[of.distance.isfinite()].median().item() for of in (self.generated, self.held_out))
        return ours / theirs if theirs else math.nan

    @property
    def flagged(self) -> list[int]:
        """Indices of the flagged generated clips, each once."""
        return sorted({flag.clip for flag in self.flags})


@torch.no_grad()
def memorisation(
    generated: Sequence[Tensor],
    train: Sequence[Tensor],
    held_out: Sequence[Tensor],
    sample_rate: int,
    embedding: Embedding,
    train_vectors: Embedded | None = None,
    candidates: int | None = CANDIDATES,
) -> Memorisation:
    """Looks for copies of training clips.

    Held-out clips should be as many as the generated ones, of the same classes, and share no recording with the
    training clips. Where the data hold near copies of one recording in both, the limits are lenient.

    Args:
        generated: N clips, each ``[C, T]``; lengths may differ.
        train: training clips, likewise; only the candidates are read more than once.
        held_out: M clips that were not trained on.
        sample_rate: of all clips, Hz.
        embedding: gives the distances, and the candidates for the comparison of waveforms.
        train_vectors: of the training clips, if they are known already.
        candidates: number of training clips, the nearest ones by embedding, whose waveforms are compared with a clip;
            None for all of them, which takes a Fourier transform for each pair.

    Raises:
        ValueError: if a set is empty, or ``train_vectors`` are of another number of clips.
    """
    for name, clips in (("generated", generated), ("train", train), ("held_out", held_out)):
        if not len(clips):
            raise ValueError(f"{name}: expected at least one clip, got none")
    known = train_vectors if train_vectors is not None else embed_clips(embedding, train, sample_rate)
    if known.num_clips != len(train):
        raise ValueError(f"train_vectors: expected those of {len(train)} training clips, got {known.num_clips}")
    new, real = (embed_clips(embedding, clips, sample_rate) for clips in (generated, held_out))
    return compare((generated, train, held_out), (new, known, real), candidates)


def compare(
    clips: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    vectors: tuple[Embedded, Embedded, Embedded],
    candidates: int | None = CANDIDATES,
) -> Memorisation:
    """As ``memorisation``, of generated, training and held-out clips whose vectors are known."""
    (generated, train, held_out), (new, known, real) = clips, vectors
    ours = find_nearest(generated, train, new, known, candidates)
    theirs = find_nearest(held_out, train, real, known, candidates)
    return Memorisation(ours, theirs, _flags(ours, theirs), len(generated) / (len(held_out) + 1))


def find_nearest(
    clips: Sequence[Tensor], train: Sequence[Tensor], vectors: Embedded, known: Embedded, candidates: int | None
) -> Nearest:
    """The nearest training clips; arguments as `memorisation`'s, with the vectors of both sets."""
    distances = torch.cdist(vectors.clip_means(), known.clip_means(), compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.nan_to_num(nan=torch.inf)  # of clips without a vector
    if candidates is None:
        chosen = torch.arange(len(train)).expand(len(clips), -1)
    else:
        chosen = distances.topk(min(candidates, len(train)), dim=1, largest=False).indices
    least, by_distance = distances.min(1)
    found = torch.isfinite(least)
    correlations = [
        torch.stack([correlation(clip, train[i]) for i in row.tolist()])
        for clip, row in zip(clips, chosen, strict=True)
    ]
    best = [values.max(0) for values in correlations]
    return Nearest(
        torch.where(found, least, torch.nan),
        torch.where(found, by_distance, -1),
        torch.stack([value.values for value in best]),
        torch.stack([row[value.indices] for row, value in zip(chosen, best, strict=True)]),
    )


def correlation(clip: Tensor, other: Tensor) -> Tensor:
    """Largest |normalised cross-correlation| of two clips ``[C, T]`` and ``[C', T']`` over all shifts: float64, 0..1.

    The shorter clip is compared with each stretch of the longer one of its length, divided by the norms of both, so a
    generated crop of a long recording is found with 1. A stretch may stick out at either end, where the longer clip
    counts as silent. Clips with another number of channels are averaged to mono. Silence has 0.
    """
    short, long = (clip, other) if clip.shape[-1] <= other.shape[-1] else (other, clip)
    short, long = short.detach().double().cpu(), long.detach().double().cpu()
    if len(short) != len(long):
        short, long = short.mean(0, keepdim=True), long.mean(0, keepdim=True)
    n, m = short.shape[-1], long.shape[-1]
    size = 2 ** (n + m - 1).bit_length()  # of shifts from -(n - 1) to m - 1
    spectrum = torch.fft.rfft(long, size) * torch.fft.rfft(short, size).conj()
    products = torch.fft.irfft(spectrum.sum(0), size)
    products = torch.cat([products[size - (n - 1) :], products[:m]])  # shifts from -(n - 1) to m - 1
    energy = torch.nn.functional.pad(long.square().sum(0), (n, n - 1)).cumsum(0)
    local = (energy[n:] - energy[:-n]).clamp(min=0)  # of the stretch at each shift
    floor = _QUIET**2 * local.amax()
    norm = short.norm() * local.clamp(min=max(floor.item(), 1e-20)).sqrt()
    return (products.abs() / norm.clamp(min=1e-20)).amax().clamp(max=1.0)


def picture(result: Memorisation, generated: Sequence[Tensor], train: Sequence[Tensor], sample_rate: int) -> Figure:
    """Draws the flagged clips (or, if there are none, the most similar ones) above their nearest training clips.

    At most eight pairs are drawn, those with the highest correlation first.
    """
    order = result.generated.correlation.argsort(descending=True).tolist()
    wanted = set(result.flagged) or set(order)
    by_waveform = {flag.clip: flag for flag in sorted(result.flags, key=lambda flag: flag.measure)}
    pairs = []
    for i in [clip for clip in order if clip in wanted][:MOST_DRAWN]:
        flag = by_waveform.get(i)
        pairs.append((i, flag.nearest if flag else int(result.generated.by_correlation[i]), flag))
    above = [f"generated {i}{f', {flag.measure}' if flag else ''}" for i, _, flag in pairs]
    below = [f"training {j}, corr. {correlation(generated[i], train[j]).item():.2f}" for i, j, _ in pairs]
    title = "flagged" if result.flags else "most similar"
    return sample_grid(
        [Row(title, [generated[i] for i, *_ in pairs], above), Row("nearest", [train[j] for _, j, _ in pairs], below)],
        sample_rate,
    )


def _flags(generated: Nearest, held_out: Nearest) -> list[Flag]:
    """Clips nearer than every held-out one."""
    known = held_out.distance[held_out.distance.isfinite()]
    flags = []
    limit = known.min().item() if len(known) else -math.inf
    for i, value in enumerate(generated.distance.tolist()):
        if value < limit:
            flags.append(Flag(i, int(generated.by_distance[i]), "embedding", value, limit))
    limit = held_out.correlation.max().item()
    for i, value in enumerate(generated.correlation.tolist()):
        if value > limit:
            flags.append(Flag(i, int(generated.by_correlation[i]), "waveform", value, limit))
    return flags
