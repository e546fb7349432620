"""Text-audio agreement with vectors that are known."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.distances.agreement import text_agreement
from audio_diffusion.metrics.embeddings.embedding import Embedded

WORDS = ("rain", "dog", "bell")


class OneHot:
    """The vector of a text is 2 at its place."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return 2 * torch.eye(3)[[WORDS.index(text) for text in texts]]


def clips(words: Sequence[str], noise: float = 0.0) -> Embedded:
    vectors = OneHot().embed_texts(words).repeat_interleave(2, 0)
    vectors = vectors + noise * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    return Embedded(vectors, torch.arange(len(vectors)) // 2, len(words))


def test_clips_of_their_own_texts_agree_and_others_are_the_floor() -> None:
    texts = list(WORDS) * 5
    perfect = text_agreement(clips(texts), texts, OneHot())
    assert (perfect.value, perfect.floor, perfect.error) == pytest.approx((1, 0, 0), abs=1e-6)
    wrong = text_agreement(clips(texts[1:] + texts[:1]), texts, OneHot())
    assert wrong.value == pytest.approx(0, abs=1e-6)
    assert wrong.floor == pytest.approx(0.5, abs=1e-6)  # one of two other words is the clip's
    noisy = text_agreement(clips(texts, 0.7), texts, OneHot())
    assert noisy.interval is not None
    assert 0.5 < noisy.interval[0] < noisy.value < noisy.interval[1] < 1


def test_equal_texts_have_no_floor_and_few_clips_no_figure() -> None:
    same = text_agreement(clips(["rain"] * 12), ["rain"] * 12, OneHot())
    assert math.isnan(same.floor)
    assert same.note == "no floor: all texts are equal"
    few = text_agreement(clips(["rain"] * 9), ["rain"] * 9, OneHot())
    assert math.isnan(few.value)
    assert few.note == "too few: 9 clips that are not silent, at least 10 are needed (text agreement)"
    with pytest.raises(ValueError, match="expected one a clip, 12 in all, got 3"):
        text_agreement(clips(["rain"] * 12), ["rain"] * 3, OneHot())
