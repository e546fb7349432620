"""Condition on the log-mel spectrogram of audio."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.networks.conditions.condition import Condition, Device, Values, numbers
from audio_diffusion.networks.layers import NullableEmbedding

FLOOR = 1e-5  # lowest magnitude: -100 dB


class Mel(Condition):
    """Condition on the natural log of the audio's mel magnitudes, shifted and scaled to about unit variance; frames.

    There are T/hop frames, and window k is centred on hop·(k + ½), as in HiFi-GAN's spectrograms (Kong et al. 2020,
    arXiv:2010.05646).

    Args:
        sample_rate: sample rate of the audio, Hz.
        channels: number of audio channels C; each has its own spectrogram.
        n_mels: number of mel bands, from 0 Hz to half the sample rate.
        n_fft: length of the window, in samples.
        hop: samples per frame; T must be a multiple of it.
        field: name of the batch's field; ``audio`` is the crop.
        embed: whether two convolutions embed the bands. If False, the network takes the bands themselves, and the width
            of its conditions must be C·n_mels.

    Raises:
        ValueError: if a number is below 1, hop exceeds n_fft, or n_fft - hop is odd.
    """

    kind = "frames"

    def __init__(
        self,
        sample_rate: int,
        channels: int,
        n_mels: int = 80,
        n_fft: int = 1024,
        hop: int = 256,
        field: str = "audio",
        embed: bool = True,
    ):
        super().__init__(field)
        check_at_least_one(channels=channels, n_mels=n_mels, n_fft=n_fft, hop=hop)
        if hop > n_fft or (n_fft - hop) % 2:
            raise ValueError(f"hop: expected n_fft ({n_fft}) less an even number, got {hop}")
        self.channels, self.num_rows, self.n_fft, self.hop = channels, channels * n_mels, n_fft, hop
        self.embed = embed
        top = sample_rate / 2
        from torchaudio.functional import melscale_fbanks  # here because it is slow, and most models have no mel

        self.bank = melscale_fbanks(n_fft // 2 + 1, 0.0, top, n_mels, sample_rate, norm="slaney", mel_scale="slaney")
        self.window = torch.hann_window(n_fft)

    def prepare(self, values: Values, device: Device) -> Tensor:
        """Returns the network's input, float32 ``[B, C·n_mels, F]``, from audio ``[B, C, T]`` or from ln magnitudes
        ``[B, C·n_mels, F]`` as ``spectrogram`` returns them.

        Raises:
            ValueError: as ``spectrogram``.
        """
        values = numbers(values, "mel", device)
        known = self.is_spectrogram(values)
        return ((values.float().clamp(min=math.log(FLOOR)) if known else self.spectrogram(values)) + 5) / 3

    def is_spectrogram(self, values: Tensor) -> bool:
        """Whether the values have the shape of a spectrogram rather than of audio."""
        return values.ndim == 3 and values.shape[1] == self.num_rows != self.channels

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Returns ln of the mel magnitudes of audio ``[B, C, T]``, at least ln 1e-5, float32 ``[B, C·n_mels, T/hop]``.

        Raises:
            ValueError: if C differs, or T is not a multiple of the hop or is shorter than the window.
        """
        if (
            audio.ndim != 3
            or audio.shape[1] != self.channels
            or audio.shape[2] % self.hop
            or audio.shape[2] < self.n_fft
        ):
            raise ValueError(
                f"mel: expected audio [B, {self.channels}, a multiple of {self.hop} (hop), at least {self.n_fft} "
                f"(n_fft)], or ln magnitudes [B, {self.num_rows}, frames], got {list(audio.shape)}"
            )
        self.bank, self.window = self.bank.to(audio.device), self.window.to(audio.device)
        with torch.autocast(audio.device.type, enabled=False):
            beside = (self.n_fft - self.hop) // 2
            padded = F.pad(audio.float(), (beside, beside), mode="reflect").flatten(0, 1)
            spectrum = torch.stft(padded, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
            mel = self.bank.T @ spectrum.abs()
        return mel.clamp(min=FLOOR).log().reshape(len(audio), self.num_rows, -1)

    def nothing(self, num: int) -> Tensor:
        return torch.full((num, self.num_rows, 1), torch.nan)

    def embedder(self, width: int) -> nn.Module:
        """See ``Condition``.

        Raises:
            ValueError: if the bands are not embedded and ``width`` is not their number.
        """
        if not self.embed:
            if width != self.num_rows:
                raise ValueError(
                    f"cond_width: expected {self.num_rows}, the rows of a mel that is not embedded, got {width}; "
                    "or set model.conditions.mel.embed=true"
                )
            return NullableEmbedding(nn.Identity(), width)
        first, second = nn.Conv1d(self.num_rows, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)
        return NullableEmbedding(nn.Sequential(first, nn.SiLU(), second), width)
