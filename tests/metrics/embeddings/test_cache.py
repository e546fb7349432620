"""Embeddings of real clips on disk: computed once, found by content, and never a reason for a run to fail."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.distance import Distances
from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.embeddings.cache import EmbeddingCache, Vectors, default_folder
from audio_diffusion.metrics.embeddings.embedding import Windows, embed_clips
from audio_diffusion.metrics.metric import Clips, Subject

RATE = 8000


class Counting:
    """An embedding of two components, which counts its clips."""

    sample_rate, width = RATE, 2

    def __init__(self, name: str = "counting 1, 1 s"):
        self.name, self.count = name, 0

    def embed(self, audio: Tensor) -> Windows:
        self.count += 1
        loud = [part for part in audio.split(500) if part.abs().max() > 1e-3]
        vectors = [torch.stack([part.mean(), part.std()]) for part in loud]
        return Windows(torch.stack(vectors) if vectors else torch.zeros(0, 2), len(audio.split(500)) - len(loud))


def some_clips(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clips = [0.1 * torch.randn(1, 400 + 300 * i, generator=generator) for i in range(count)]
    return [*clips, torch.zeros(1, 700)]  # the last one is silent


def test_clips_are_embedded_once_for_all_programs(tmp_path: Path) -> None:
    clips, first = some_clips(4), Counting()
    expected = embed_clips(Counting(), clips, RATE)
    cache = EmbeddingCache(str(tmp_path))
    made = cache.embed(first, clips, RATE)
    cache.flush()
    assert (first.count, cache.found, cache.embedded) == (5, 0, 5)

    again, other = Counting(), EmbeddingCache(str(tmp_path))  # another program, which asks in another order
    found = other.embed(again, clips[::-1], RATE)
    assert (again.count, other.found) == (0, 5)
    for embedded, order in ((made, range(5)), (found, range(4, -1, -1))):
        assert (embedded.num_clips, embedded.num_silent, embedded.name) == (5, expected.num_silent, expected.name)
        for place, number in enumerate(order):
            mine, theirs = (e.vectors[e.clips == i] for e, i in ((embedded, place), (expected, number)))
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("changed", ["sample", "sample_rate", "channels", "name"])
def test_another_clip_or_embedding_does_not_find_an_old_vector(tmp_path: Path, changed: str) -> None:
    clip = some_clips(1)[0]
    cache = EmbeddingCache(str(tmp_path))
    cache.embed(Counting(), [clip], RATE)
    cache.flush()
    other, rate, embedding = clip.clone(), RATE, Counting("counting 2, 1 s" if changed == "name" else Counting().name)
    if changed == "sample":
        other[0, 7] += 1e-6
    if changed == "channels":
        other = torch.cat([clip, clip])
    if changed == "sample_rate":
        rate = 2 * RATE
    EmbeddingCache(str(tmp_path)).embed(embedding, [other], rate)
    assert embedding.count == 1


def test_two_programs_may_write_at_once_and_a_damaged_file_is_embedded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips, caches = some_clips(2), [EmbeddingCache(str(tmp_path)) for _ in range(2)]
    for cache in caches:
        cache.embed(Counting(), clips, RATE)
    for cache in caches:
        cache.flush()
    (path,) = tmp_path.rglob("*.*")  # one file, whole, and nothing half-written
    path.write_bytes(path.read_bytes()[:100])
    embedding = Counting()
    with caplog.at_level(logging.WARNING):
        EmbeddingCache(str(tmp_path)).embed(embedding, clips, RATE)
    assert embedding.count == 3
    assert "is not used, and its clips are embedded again" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert len(cache.embed(Counting(), some_clips(2), RATE)) > 0
        cache.flush()
    assert "the embeddings of 3 clips cannot be kept in" in caplog.text


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_DIFFUSION_CACHE", str(tmp_path))
    assert EmbeddingCache().folder == tmp_path / "embeddings"
    monkeypatch.delenv("AUDIO_DIFFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / "audio_diffusion" / "embeddings"
    embedding, nothing = Counting(), EmbeddingCache(None)
    for _ in range(2):
        nothing.embed(embedding, some_clips(1), RATE)
    assert embedding.count == 4
    assert nothing.describe() == ""


def test_generated_clips_are_never_kept(tmp_path: Path) -> None:
    vectors = Vectors(Counting(), EmbeddingCache(str(tmp_path)))
    vectors.start(RATE)
    vectors.add(some_clips(2), "generated")
    assert len(vectors.of("generated")) > 0
    assert not list(tmp_path.rglob("*.*"))
    vectors.forget("generated")
    assert len(vectors.of("generated")) == 0


def test_a_distance_is_the_same_with_and_without(tmp_path: Path) -> None:
    def batch(seed: int) -> Clips:
        audio = 0.1 * torch.randn(60, 1, 1500, generator=torch.Generator().manual_seed(seed))
        names = [str(i) for i in range(60)]
        return Clips(audio, torch.ones(60, 1, 1500, dtype=torch.bool), names, [None] * 60)

    values, counts = [], []
    for cache in (None, str(tmp_path), str(tmp_path)):
        embedding = Counting()
        distances = Distances(embedding, {"kad": kad}, cache)
        distances.start(Subject(RATE, 1))
        distances.update(batch(1), "real")
        distances.update(batch(2), "generated")
        values.append(distances.compute()["kad"].value)
        counts.append(embedding.count)
        said = distances.describe()[-1]
    assert values[0] == values[1] == values[2]
    assert counts == [120, 120, 60]
    assert said.startswith(f"60 of 60 real clips had been embedded before, and were found in {tmp_path} (")
