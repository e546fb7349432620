"""Sets of clips as vectors; the log-mel embedding."""

import math

import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import Embedded, cut, embed_clips, join, to_mono
from audio_diffusion.metrics.embeddings.log_mel import FLOOR_DB, LogMel


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_windows_know_their_clip_and_silent_ones_are_counted() -> None:
    clips = [noise(1, 40_000), torch.zeros(2, 40_000), noise(8000), 1e-4 * noise(1, 16_000)]
    embedded = embed_clips(LogMel(16_000), clips, 16_000)
    assert embedded.clips.tolist() == [0, 0, 0, 0, 2]
    assert embedded.vectors.shape == (5, 96)
    assert (embedded.num_clips, embedded.num_silent) == (4, 5)
    assert embedded.name == "log-mel 1, 16000 Hz, 1 s every 0.5 s"
    means = embedded.clip_means()
    torch.testing.assert_close(means[0], embedded.vectors[:4].double().mean(0))
    assert means[1].isnan().all()


def test_an_embedding_of_another_rate_gets_resampled_audio() -> None:
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(44_100) / 44_100)
    mono = to_mono(torch.stack([tone, 0 * tone]), 44_100, 16_000)
    assert mono.shape == (16_000,)
    expected = 0.5 * torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)
    torch.testing.assert_close(mono[100:-100], expected[100:-100], atol=2e-3, rtol=0)


def test_sets_are_joined_and_taken_apart() -> None:
    a = Embedded(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 0, 2]), 3, 1, "a")
    b = Embedded(torch.ones(1, 2), torch.tensor([0]), 1, 0, "a")
    both = join([a, b])
    assert (both.clips.tolist(), both.num_clips, both.num_silent) == ([0, 0, 2, 3], 4, 1)
    part = both.select(torch.tensor([3, 0]))
    assert (part.clips.tolist(), part.num_clips) == ([1, 1, 0], 2)
    assert part.vectors.tolist() == [[0, 1], [2, 3], [1, 1]]
    with pytest.raises(ValueError, match="one embedding"):
        join([a, Embedded(torch.ones(1, 2), torch.tensor([0]), 1, 0, "b")])


def test_log_mel_measures_level_spread_and_change() -> None:
    embedding = LogMel(16_000)
    time = torch.arange(16_000) / 16_000
    steady = embedding.embed(0.5 * torch.sin(2 * math.pi * 1000 * time)).vectors[0]
    level, deviation, change = steady.split(32)
    assert level.max() == pytest.approx(20 * math.log10(0.5), abs=2.5)  # the band's weight and the window's side bins
    assert level.min() == FLOOR_DB
    assert deviation.max() < 0.2
    assert change.max() < 0.2
    pulsed = embedding.embed(0.5 * torch.sin(2 * math.pi * 1000 * time) * (time % 0.25 < 0.125)).vectors[0]
    assert pulsed[level.argmax() + 32] > 10
    assert pulsed[level.argmax() + 64] > 3
    louder = embedding.embed(2 * noise(16_000)).vectors[0] - embedding.embed(noise(16_000)).vectors[0]
    torch.testing.assert_close(louder[:32], torch.full((32,), 20 * math.log10(2)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("length", [1, 500, 1024, 16_000])
@pytest.mark.parametrize("sample_rate", [8000, 16_000, 44_100])
def test_log_mel_of_short_clips_is_one_window(length: int, sample_rate: int) -> None:
    windows = LogMel(sample_rate).embed(torch.ones(length))
    assert windows.vectors.shape == (1, 96) or length == 16_000
    assert windows.vectors.isfinite().all()


def test_windows_are_cut_and_silent_ones_dropped() -> None:
    audio = torch.cat([noise(100), torch.zeros(100), noise(60)])
    windows, silent = cut(audio, 100, 100)
    assert torch.equal(windows, audio[None, :100])
    assert silent == 1
    padded, silent = cut(noise(60), 100, 50)
    assert padded.shape == (1, 100)
    assert (padded[0, 60:] == 0).all()
    assert silent == 0
    assert cut(torch.zeros(60), 100, 50)[0].shape == (0, 100)


def test_bad_audio_is_refused_with_its_number() -> None:
    with pytest.raises(ValueError, match="clip 1: audio: expected finite samples"):
        embed_clips(LogMel(), [noise(1, 100), torch.full((1, 100), torch.nan)], 16_000)
    with pytest.raises(ValueError, match=r"clip 0: audio: expected floating point \[C, T\]"):
        embed_clips(LogMel(), [torch.zeros(1, 0)], 16_000)
    with pytest.raises(ValueError, match="hop_s: expected a positive number, got 0"):
        LogMel(hop_s=0)
    with pytest.raises(ValueError, match="indices from 0 to 0"):
        Embedded(torch.zeros(1, 2), torch.tensor([1]), 1)
    with pytest.raises(ValueError, match="finite"):
        Embedded(torch.full((1, 2), torch.inf), torch.tensor([0]), 1)
