"""Agreement of clips and their captions: cosine similarity of a CLAP's audio and text vectors."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from audio_diffusion.diffusion.float64 import in_double
from audio_diffusion.metrics.distances.estimate import MIN_CLIPS, REPLICATES, Estimate, resampled_means, spread
from audio_diffusion.metrics.embeddings.embedding import Embedded


class TextEmbedding(Protocol):
    """Embeds texts in the space of an embedding of audio, such as ``Pretrained`` with a CLAP."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors of N texts, ``[N, E]``."""
        ...


def text_agreement(
    generated: Embedded,
    texts: Sequence[str],
    text_embedding: TextEmbedding,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Estimate:
    """Mean cosine similarity of each clip's vector (the mean of its windows) with that of its own text, -1..1 ("CLAP
    score"; Wu et al. 2023, arXiv:2211.06687, give the model).

    The floor is the similarity with the texts of the *other* clips: what a model reaches that does not read its text.
    The interval is the central 95 % of replicates that draw clips with replacement. It is refused for fewer than 10
    clips.

    Raises:
        ValueError: unless there is one text a clip.
    """
    if len(texts) != generated.num_clips:
        raise ValueError(f"texts: expected one a clip, {generated.num_clips} in all, got {len(texts)}")
    means = generated.clip_means()
    present = means.isfinite().all(1).nonzero()[:, 0]
    count = len(present)
    if count < MIN_CLIPS:
        note = f"too few: {count} clips that are not silent, at least {MIN_CLIPS} are needed (text agreement)"
        return Estimate(math.nan, windows=len(generated), note=note)
    words = in_double(text_embedding.embed_texts(list(texts))).cpu()[present]
    normed = [torch.nn.functional.normalize(vectors, dim=1) for vectors in (means[present], words)]
    similarity = normed[0] @ normed[1].T
    own = similarity.diagonal()
    others = torch.tensor([[texts[i] != texts[j] for j in present.tolist()] for i in present.tolist()])
    floor = similarity[others].mean().item() if others.any() else math.nan
    error, interval = spread(resampled_means(own, torch.arange(count), seed, replicates))
    note = "" if others.any() else "no floor: all texts are equal"
    return Estimate(own.mean().item(), error, interval, floor, len(generated), 0, note)
