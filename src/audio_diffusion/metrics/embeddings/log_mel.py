"""Statistics of a log-mel spectrogram: an embedding that needs no weights."""

import math

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from audio_diffusion.metrics.embeddings.embedding import SILENCE_DBFS, Windows

FLOOR_DB = -80.0  # power in a band below this, relative to a full-scale sine, counts as this


class LogMel:
    """Mean and standard deviation over time of each mel band's level, and the mean size of its changes, all in dB.

    A window has 32 bands from 0 Hz to half the rate, so E = 96. A clip shorter than a window is one window of its own
    length (padded with zeros to one frame of 64 ms if it is shorter than that). A window whose loudest frame is below
    -60 dBFS is dropped.

    It represents level, timbre and the amount of movement, but neither pitch nor words: use it if no other embedding is
    installed, or for a quick check of the spectrum.

    Args:
        sample_rate: Hz.
        window_s: length of a window, in seconds.
        hop_s: distance between windows, in seconds.

    Raises:
        ValueError: if a number is not positive.
    """

    num_mels = 32

    def __init__(self, sample_rate: int = 16_000, window_s: float = 1.0, hop_s: float = 0.5):
        for name, value in {"sample_rate": sample_rate, "window_s": window_s, "hop_s": hop_s}.items():
            if value <= 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        self.sample_rate, self.width = sample_rate, 3 * self.num_mels
        self.name = f"log-mel 1, {sample_rate} Hz, {window_s:g} s every {hop_s:g} s"
        self._n_fft = 2 ** max(7, round(math.log2(0.064 * sample_rate)))
        self._hop = self._n_fft // 4
        self._frames = max(1, round((window_s * sample_rate - self._n_fft) / self._hop) + 1)
        self._step = max(1, round(hop_s * sample_rate / self._hop))
        self._window = torch.hann_window(self._n_fft)
        bins = self._n_fft // 2 + 1
        self._bank = melscale_fbanks(bins, 0.0, sample_rate / 2, self.num_mels, sample_rate)

    def embed(self, audio: Tensor) -> Windows:
        """See ``Embedding``."""
        if len(audio) < self._n_fft:
            audio = torch.nn.functional.pad(audio, (0, self._n_fft - len(audio)))
        frames = audio.unfold(0, self._n_fft, self._hop)
        # a full-scale sine in the middle of a bin has power 1
        power = (torch.fft.rfft(frames * self._window).abs() / self._window.sum() * 2).square()
        level = 10 * (power @ self._bank).clamp(min=10 ** (FLOOR_DB / 10)).log10()  # [frames, mels]
        loudness = 10 * frames.square().mean(1).clamp(min=1e-20).log10()
        length = min(self._frames, len(level))
        levels = level.unfold(0, length, self._step)  # [windows, mels, frames]
        loud = loudness.unfold(0, length, self._step).amax(1) >= SILENCE_DBFS
        changes = levels.diff(dim=-1).abs().sum(-1) / max(1, length - 1)
        vectors = torch.cat([levels.mean(-1), levels.std(-1, correction=0), changes], dim=1)
        return Windows(vectors[loud], int((~loud).sum()))
