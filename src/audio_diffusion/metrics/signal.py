"""Distances of a clip from its reference, for vocoders and restoration.

All take estimate and reference ``[B, C, T]`` and return one number per clip, ``[B]``. Only ``si_sdr`` depends on phase.
"""

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from audio_diffusion.diffusion.float64 import in_double

#: (n_fft, hop, window) of Parallel WaveGAN's three resolutions (Yamamoto et al. 2020, arXiv:1910.11480, table 1)
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
FLOOR = 1e-5  # lowest magnitude: -100 dB, as in ``networks.conditions.mel``


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv:1811.02508, eqs. 3 to 5).

    Raises:
        ValueError: unless both have one shape ``[B, C, T]``.
    """
    estimate, reference = _pair(estimate, reference)
    scale = (estimate * reference).sum(1) / reference.square().sum(1).clamp(min=1e-20)
    target = scale[:, None] * reference
    error = (estimate - target).square().sum(1).clamp(min=1e-20)
    return 10 * (target.square().sum(1).clamp(min=1e-20) / error).log10()


def log_mel_distance(
    estimate: Tensor,
    reference: Tensor,
    sample_rate: int,
    n_mels: int = 80,
    n_fft: int = 1024,
    hop: int = 256,
    floor: float = FLOOR,
) -> Tensor:
    """Mean absolute difference in dB of the magnitudes in 80 Slaney mel bands up to half the rate.

    Magnitudes below ``floor`` (-100 dB) are raised to it.

    Raises:
        ValueError: unless both have one shape ``[B, C, T]``.
    """
    estimate, reference = _pair(estimate, reference, flatten=False)
    bank = melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate, "slaney", "slaney")
    bank = bank.to(estimate)

    def decibels(audio: Tensor) -> Tensor:
        return 20 * (bank.T @ _magnitude(audio, n_fft, hop, n_fft)).clamp(min=floor).log10()

    return (decibels(estimate) - decibels(reference)).abs().flatten(1).mean(1)


def multi_resolution_stft(estimate: Tensor, reference: Tensor) -> Tensor:
    """Spectral convergence plus the mean difference of log magnitudes, averaged over three resolutions (eqs. 4 to 6 of
    Yamamoto et al. 2020).

    Raises:
        ValueError: unless both have one shape ``[B, C, T]``.
    """
    estimate, reference = _pair(estimate, reference, flatten=False)
    distances = []
    for n_fft, hop, window in RESOLUTIONS:
        made, true = (_magnitude(x, n_fft, hop, window).clamp(min=FLOOR).flatten(1) for x in (estimate, reference))
        convergence = (true - made).norm(dim=1) / true.norm(dim=1)
        distances.append(convergence + (true.log() - made.log()).abs().mean(1))
    return torch.stack(distances).mean(0)


def _magnitude(audio: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """``[B, C, T]`` -> ``[B, C, frequencies, frames]``; beyond its ends the signal is silent."""
    spectrum = torch.stft(
        audio.flatten(0, 1), n_fft, hop, window, torch.hann_window(window, dtype=audio.dtype, device=audio.device),
        pad_mode="constant", return_complex=True,
    )  # fmt: skip
    return spectrum.abs().unflatten(0, audio.shape[:2])


def _pair(estimate: Tensor, reference: Tensor, flatten: bool = True) -> tuple[Tensor, Tensor]:
    """Both as float64, ``[B, C·T]`` if flattened."""
    if estimate.ndim != 3 or estimate.shape != reference.shape:
        raise ValueError(
            f"estimate: expected [B, C, T] as the reference's {list(reference.shape)}, got {list(estimate.shape)}"
        )
    both = (in_double(estimate), in_double(reference))
    return (both[0].flatten(1), both[1].flatten(1)) if flatten else both
