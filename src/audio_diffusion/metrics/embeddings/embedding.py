"""The contract of an embedding, and the embedding of a set of clips."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchaudio.functional import resample

SILENCE_DBFS = -60.0  # an embedding without a rule of its own drops windows with a lower RMS


class Windows(NamedTuple):
    """The vectors of one clip.

    vectors: vectors of the remaining windows, float32 ``[windows, E]``.
    num_silent: number of windows that were dropped because they are nearly silent. Their vectors do not describe the
        sound and lie far from all others, so a few of them would dominate a Fréchet distance.
    """

    vectors: Tensor
    num_silent: int


class Embedding(Protocol):
    """Turns audio into vectors, one for each window.

    Attributes:
        name: includes everything that affects the vectors, such as the version of the weights and the window. Figures
            are comparable only between embeddings with the same name.
        sample_rate: of the audio it takes, Hz.
        width: number E of components of a vector.
    """

    name: str
    sample_rate: int
    width: int

    def embed(self, audio: Tensor) -> Windows:
        """Embeds one clip.

        Args:
            audio: mono, float32 ``[T]`` at ``sample_rate``, T >= 1, finite.
        """
        ...


@dataclass(frozen=True)
class Embedded:
    """The vectors of a set of clips.

    Attributes:
        vectors: float32 or float64 ``[windows, E]``.
        clips: index of the clip that each window belongs to, int64 ``[windows]``.
        num_clips: number of clips, those without a window too.
        num_silent: number of nearly silent windows that were dropped.
        name: of the embedding.
    """

    vectors: Tensor
    clips: Tensor
    num_clips: int
    num_silent: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.clips.shape != self.vectors.shape[:1]:
            raise ValueError(
                f"vectors and clips: expected [windows, E] and [windows], got {list(self.vectors.shape)} and "
                f"{list(self.clips.shape)}"
            )
        if len(self.clips) and not 0 <= int(self.clips.min()) <= int(self.clips.max()) < self.num_clips:
            raise ValueError(f"clips: expected indices from 0 to {self.num_clips - 1}, num_clips - 1")
        if not self.vectors.isfinite().all():
            raise ValueError("vectors: expected finite numbers, got NaN or infinity")

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.vectors)

    def select(self, clips: Tensor) -> "Embedded":
        """Returns the windows of some clips, given by their indices ``[n]``, which are numbered anew from 0."""
        number = torch.full((self.num_clips,), -1, dtype=torch.int64)
        number[clips] = torch.arange(len(clips))
        new = number[self.clips]
        return Embedded(self.vectors[new >= 0], new[new >= 0], len(clips), 0, self.name)

    def clip_means(self) -> Tensor:
        """Mean vector of each clip, float64 ``[num_clips, E]``; NaN for clips without a window."""
        sums = torch.zeros(self.num_clips, self.vectors.shape[1], dtype=torch.float64)
        sums.index_add_(0, self.clips, self.vectors.double())
        return sums / torch.bincount(self.clips, minlength=self.num_clips)[:, None]


def nothing_of(embedding: Embedding) -> Embedded:
    """The vectors of no clips."""
    index = torch.zeros(0, dtype=torch.int64)
    return Embedded(torch.zeros(0, embedding.width), index, 0, 0, embedding.name)


def join(parts: Iterable[Embedded]) -> Embedded:
    """Joins sets of clips; the clips of each part follow those of the parts before it.

    Raises:
        ValueError: if there is no part, or their embeddings differ.
    """
    parts = list(parts)
    if len({part.name for part in parts}) != 1:
        raise ValueError(f"parts: expected vectors of one embedding, got {sorted({part.name for part in parts})}")
    clips, first = [], 0
    for part in parts:
        clips.append(part.clips + first)
        first += part.num_clips
    silent = sum(part.num_silent for part in parts)
    return Embedded(torch.cat([part.vectors for part in parts]), torch.cat(clips), first, silent, parts[0].name)


def to_mono(audio: Tensor, sample_rate: int, target_rate: int) -> Tensor:
    """Averages the channels of audio ``[C, T]`` (or ``[T]``) and resamples it to ``target_rate`` Hz: float32 ``[T']``.

    Raises:
        ValueError: for audio that is empty, of another shape, or not finite.
    """
    if audio.ndim not in (1, 2) or not audio.numel() or not audio.is_floating_point():
        raise ValueError(f"audio: expected floating point [C, T] or [T], got {audio.dtype} {list(audio.shape)}")
    if not audio.isfinite().all():
        raise ValueError("audio: expected finite samples, got NaN or infinity")
    mono = audio.detach().float().cpu()
    mono = mono.mean(0) if mono.ndim == 2 else mono
    return mono if sample_rate == target_rate else resample(mono, sample_rate, target_rate)


@torch.no_grad()
def embed_clips(embedding: Embedding, clips: Iterable[Tensor], sample_rate: int) -> Embedded:
    """Embeds a set of clips.

    Args:
        embedding: the embedding.
        clips: each ``[C, T]`` or ``[T]``; lengths may differ. Channels are averaged.
        sample_rate: of the clips, Hz; they are resampled where the embedding needs another one.

    Raises:
        ValueError: for a clip that is empty or not finite; the message has its number, from 0.
    """
    vectors, index, silent, count = [torch.zeros(0, embedding.width)], [torch.zeros(0, dtype=torch.int64)], 0, 0
    for number, clip in enumerate(clips):
        try:
            windows = embedding.embed(to_mono(clip, sample_rate, embedding.sample_rate))
        except ValueError as error:
            raise ValueError(f"clip {number}: {error}") from error
        vectors.append(windows.vectors.float().cpu())
        index.append(torch.full((len(windows.vectors),), number))
        silent, count = silent + windows.num_silent, number + 1
    return Embedded(torch.cat(vectors), torch.cat(index), count, silent, embedding.name)


def cut(audio: Tensor, window: int, hop: int) -> tuple[Tensor, int]:
    """Cuts mono audio ``[T]`` into windows and drops those below `SILENCE_DBFS`.

    Audio shorter than a window is padded with zeros to one. A rest at the end that is shorter than the window is left
    out. The level of a padded window is measured over the audio alone.

    Returns:
        The windows that are kept, ``[n, window]``, and the number of those that were dropped.
    """
    if len(audio) < window:
        loud = bool(_level_dbfs(audio) >= SILENCE_DBFS)
        padded = torch.nn.functional.pad(audio, (0, window - len(audio)))[None]
        return padded[: int(loud)], int(not loud)
    windows = audio.unfold(0, window, hop)
    loud_ones = _level_dbfs(windows) >= SILENCE_DBFS
    return windows[loud_ones], int((~loud_ones).sum())


def _level_dbfs(audio: Tensor) -> Tensor:
    return 10 * audio.square().mean(-1).clamp(min=1e-20).log10()
