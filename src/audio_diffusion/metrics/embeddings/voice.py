"""Speaker embeddings by the encoder of the PyPI package resemblyzer (GE2E, Wan et al. 2017, arXiv:1710.10467)."""

import math

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from audio_diffusion.metrics.embeddings.embedding import SILENCE_DBFS, Windows
from audio_diffusion.metrics.embeddings.installed import package_folder, package_version

INSTALL = "pip install --no-deps resemblyzer"  # its dependencies are not needed here; one is compiled from C
FRAME, FRAMES, FRAME_HOP = 160, 160, 77  # samples per frame; frames per window (1.6 s) and between windows (0.77 s)
TARGET_DBFS = -30.0


class Voice:
    """A vector of length 1 for the speaker in each window of 1.6 s, every 0.77 s.

    Windows, spectrogram (40 mel bands of power, 25 ms every 10 ms) and the gain that raises quiet clips to -30 dBFS are
    resemblyzer's; pauses are not cut out. A last window that is filled to less than three quarters is left out; shorter
    clips are padded with zeros. A window is dropped if its RMS is below -60 dBFS.

    The weights are read from the installed package, without importing it. It is for speech only: vectors of other
    sounds have no meaning.

    Raises:
        ValueError: if the package is not installed; the message says how to install it.
    """

    sample_rate = 16_000
    width = 256

    def __init__(self) -> None:
        folder = package_folder("resemblyzer", "Voice", INSTALL)
        self.name = f"voice of resemblyzer {package_version('resemblyzer')}, 1.6 s every 0.77 s"
        weights = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
        with torch.random.fork_rng(devices=[]):  # what a constructor draws is not missing elsewhere
            self._lstm, self._linear = nn.LSTM(40, self.width, 3, batch_first=True), nn.Linear(self.width, self.width)
        for name, part in (("lstm", self._lstm), ("linear", self._linear)):
            start = f"{name}."
            part.load_state_dict({key[len(start) :]: w for key, w in weights.items() if key.startswith(start)})
            part.requires_grad_(False)
        self._window = torch.hann_window(400)
        self._bank = melscale_fbanks(201, 0.0, 8000.0, 40, self.sample_rate, norm="slaney", mel_scale="slaney")

    def embed(self, audio: Tensor) -> Windows:
        """See ``Embedding``."""
        starts = self._starts(len(audio))
        padding = max(0, starts[-1] + FRAMES * FRAME - len(audio))
        level = _level_dbfs(audio)
        padded = torch.nn.functional.pad(audio, (0, padding))
        loud = [i for i in starts if _level_dbfs(audio[i : i + FRAMES * FRAME]) >= SILENCE_DBFS]
        if not loud:
            return Windows(torch.zeros(0, self.width), len(starts))
        mel = self._mel(padded * 10 ** (max(0.0, TARGET_DBFS - level) / 20))
        batch = torch.stack([mel[i // FRAME : i // FRAME + FRAMES] for i in loud])
        hidden = self._linear(self._lstm(batch)[1][0][-1]).relu()
        return Windows(hidden / hidden.norm(dim=1, keepdim=True), len(starts) - len(loud))

    def _starts(self, length: int) -> list[int]:
        """First sample of each window."""
        frames = math.ceil((length + 1) / FRAME)
        starts = [i * FRAME for i in range(0, max(1, frames - FRAMES + FRAME_HOP + 1), FRAME_HOP)]
        if len(starts) > 1 and (length - starts[-1]) / (FRAMES * FRAME) < 0.75:
            starts.pop()
        return starts

    def _mel(self, audio: Tensor) -> Tensor:
        """Mel power ``[frames, 40]``; beyond its ends the audio is silent."""
        spectrum = torch.stft(audio, 400, FRAME, window=self._window, pad_mode="constant", return_complex=True)
        return spectrum.abs().square().T @ self._bank


def _level_dbfs(audio: Tensor) -> float:
    return 10 * math.log10(max(audio.square().mean().item(), 1e-20)) if len(audio) else -math.inf
