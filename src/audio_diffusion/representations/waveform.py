"""The waveform as a representation: x0 is the scaled audio."""

import math

from torch import Tensor


class Waveform:
    """The waveform, scaled so that x0 has about unit variance, as the noise of the schedules has.

    Without the factor the noise hides quiet audio: at RMS 0.1 the same schedule adds 20 dB more noise, relative to the
    signal, than at RMS 1.

    Args:
        scale: factor from audio (full scale ±1) to x0.

    Raises:
        ValueError: if ``scale`` is not positive.
    """

    hop, exact, elementwise = 1, True, True

    def __init__(self, scale: float = 1.0):
        if not scale > 0:
            raise ValueError(f"scale: expected a positive factor, got {scale}")
        self.scale = scale

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` -> x0 of the same shape."""
        return audio * self.scale

    def decode(self, x0: Tensor) -> Tensor:
        """x0 -> audio, the inverse of ``encode``; nothing is clipped."""
        return x0 / self.scale

    def shape(self, channels: int, num_samples: int) -> tuple[int, int]:
        """The shape of one x0 for audio ``[channels, num_samples]``: the same."""
        return channels, num_samples

    def mask(self, valid: Tensor) -> Tensor:
        """Returns the mask of samples, bool ``[B, 1, T]``, unchanged: positions are samples."""
        return valid

    def log_det(self, channels: int, num_samples: int) -> float:
        """ln |det ∂x0/∂audio|: ln(scale) for each sample of each channel."""
        return channels * num_samples * math.log(self.scale)
