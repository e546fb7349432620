"""The modified discrete cosine transform (MDCT): real short-time spectra, orthonormal and exactly invertible."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from audio_diffusion.representations.representation import check_length

_LEAST_DB = -60.0  # lower limit of a band's deviation relative to the loudest band, so that noise is not amplified


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached tensors must work in calls with gradients, too
def _twiddle(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """exp(-iπ(n + 1/8)/M) for n below M/2."""
    angle = -math.pi / size * (torch.arange(size // 2, dtype=torch.float64) + 0.125)
    return torch.polar(torch.ones_like(angle), angle).to(dtype).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _numbers(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Constants as a tensor, converted on the CPU: not all devices have float64."""
    return torch.tensor(values, dtype=torch.float64).to(dtype).to(device)


def dct4(x: Tensor) -> Tensor:
    """The orthonormal DCT-IV of the last dimension, of even length M; its own inverse.

    X_k = √(2/M) Σ_n x_n cos(π/M (n + ½)(k + ½)), by one complex FFT of M/2 points.
    """
    size = x.shape[-1]
    twiddle = _twiddle(size, x.device, torch.complex128 if x.dtype == torch.float64 else torch.complex64)
    spectrum = torch.fft.fft(torch.complex(x[..., ::2], x[..., 1::2].flip(-1)) * twiddle) * twiddle
    pairs = torch.stack([spectrum.real, -spectrum.imag.flip(-1)], dim=-1)
    return pairs.flatten(-2) * (2 / size) ** 0.5


class Mdct:
    """MDCT coefficients: a position of x0 is a frame of M = ``frame_length`` samples, with M bands per channel.

    With the sine window the MDCT is an orthonormal lapped transform (Princen, Johnson & Bradley 1987; Malvar 1990): the
    M/2 samples on either side of a frame's border are rotated against each other, pair by pair, and each frame then
    goes through a DCT-IV, which gives X_k = √(2/M) Σ_n w_n x_n cos(π/M (n + ½ + M/2)(k + ½)) over the 2M samples
    around a frame. At both ends of the audio nothing is rotated, so T samples become T coefficients and ``decode`` is
    the exact inverse. In x0 ``[B, C·M, T/M]`` the bands of the first channel come first, low frequencies first.

    Args:
        frame_length: M, the number of samples per frame, even.
        band_std: standard deviation of each band's coefficients in the data, M numbers, by which the coefficients are
            divided; None for no division. ``statistics`` measures them.

    Raises:
        ValueError: for a frame length that is odd or below 2, or deviations that are not M positive numbers.
    """

    exact, elementwise = True, False

    def __init__(self, frame_length: int = 256, band_std: Sequence[float] | None = None):
        if frame_length < 2 or frame_length % 2:
            raise ValueError(f"frame_length: expected an even number of samples, at least 2, got {frame_length}")
        if band_std is not None and (len(band_std) != frame_length or not min(band_std) > 0):
            raise ValueError(
                f"band_std: expected {frame_length} positive deviations, one a band, got {len(band_std)} of which the "
                f"least is {min(band_std, default=math.nan)}"
            )
        self.hop = self.frame_length = frame_length
        self.band_std = None if band_std is None else tuple(band_std)
        angles = [math.pi / 4 + math.pi / 2 * (n + 0.5) / frame_length for n in range(frame_length // 2)]
        #: the sine window by distance from a border between frames: on the frame's side, and beyond the border
        self._inside, self._outside = tuple(map(math.sin, angles)), tuple(map(math.cos, angles))

    def shape(self, channels: int, num_samples: int) -> tuple[int, int]:
        """Shape (C·M, T/M) of one x0 for audio ``[channels, num_samples]``.

        Raises:
            ValueError: if ``num_samples`` is not a multiple of the frame length.
        """
        check_length(num_samples, self.hop)
        return channels * self.frame_length, num_samples // self.frame_length

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` -> x0 ``[B, C·M, T/M]``."""
        check_length(audio.shape[-1], self.hop)
        frames = self._rotate(audio.unflatten(-1, (-1, self.frame_length)), -1.0)
        bands = -dct4(frames.flip(-1))  # [B, C, L, M]
        if self.band_std is not None:
            bands = bands / _numbers(self.band_std, bands.device, bands.dtype)
        return bands.transpose(-1, -2).flatten(1, 2)

    def decode(self, x0: Tensor) -> Tensor:
        """x0 ``[B, C·M, L]`` -> audio ``[B, C, L·M]``."""
        bands = x0.unflatten(1, (-1, self.frame_length)).transpose(-1, -2)
        if self.band_std is not None:
            bands = bands * _numbers(self.band_std, bands.device, bands.dtype)
        return self._rotate(-dct4(bands).flip(-1), 1.0).flatten(-2)

    def _rotate(self, frames: Tensor, sign: float) -> Tensor:
        """Rotates mirrored samples around the borders between frames ``[.., L, M]``; ``sign`` is the direction."""
        if frames.shape[-2] < 2:
            return frames
        half, kind = self.frame_length // 2, (frames.device, frames.dtype)
        cos, sin = _numbers(self._inside, *kind), sign * _numbers(self._outside, *kind)
        before, after = frames[..., :-1, half:].flip(-1), frames[..., 1:, :half]  # by distance from the border
        end, begin = cos * before - sin * after, cos * after + sin * before
        first, last = frames[..., :1, :half], frames[..., -1:, half:]
        return torch.cat(
            [torch.cat([first, begin], dim=-2), torch.cat([end.flip(-1), last], dim=-2)], dim=-1
        )  # the first half of each frame beside its second half

    def mask(self, valid: Tensor) -> Tensor:
        """Converts a mask of samples, bool ``[B, 1, T]``, to frames that contain any of them, bool ``[B, 1, T/M]``."""
        return valid.unflatten(-1, (-1, self.frame_length)).any(-1)

    def log_det(self, channels: int, num_samples: int) -> float:
        """ln |det ∂x0/∂audio|: only the division by the deviations counts, as the transform itself is orthonormal."""
        if self.band_std is None:
            return 0.0
        return -channels * (num_samples // self.frame_length) * sum(map(math.log, self.band_std))

    def statistics(self, clips: Iterable[Tensor]) -> dict[str, list[float]]:
        """Measures ``band_std`` of clips ``[C, T]``, to four digits; bands below -60 dB of the loudest are set to that.

        Raises:
            ValueError: if the clips are silent or shorter than a frame.
        """
        power, count = torch.zeros(self.frame_length, dtype=torch.float64), 0
        plain = Mdct(self.frame_length)
        for clip in clips:
            whole = clip[..., : clip.shape[-1] // self.hop * self.hop]
            if whole.shape[-1]:
                bands = plain.encode(whole[None].double()).unflatten(1, (-1, self.frame_length))  # [1, C, M, L]
                power += bands.square().sum((0, 1, 3))
                count += whole.numel() // self.frame_length
        if not power.max() > 0:
            raise ValueError("band_std: expected training clips with sound in them to measure the bands of, got none")
        std = (power / count).sqrt()
        return {"band_std": [float(f"{s:.4g}") for s in std.clamp(min=std.max() * 10 ** (_LEAST_DB / 20)).tolist()]}
