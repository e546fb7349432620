"""Noise between the partials of tones: the level of a spectrum's floor below its strongest partial."""

import torch
from torch import Tensor

WINDOW_S = 0.128  # resolves partials 16 Hz apart
AFTER_PEAK_S = 0.03  # the attack, which is noise in real sounds too, is left out
BAND_HZ = (300.0, 7000.0)


def noise_between_partials(audio: Tensor, sample_rate: int) -> Tensor:
    """Level of the noise between the partials of each clip, relative to its strongest partial, in dB ``[N]``.

    It is the median power of the spectrum from 300 Hz to 7 kHz, in two half-overlapping Hann windows of 0.128 s that
    begin 30 ms after the loudest sample. The median leaves out the few bins that hold partials. It means little for
    sounds that are noise themselves. Silence gives 0.

    Args:
        audio: clips ``[N, C, T]`` of at least 0.23 s; channels are averaged after the transform.
        sample_rate: in Hz.

    Raises:
        ValueError: if the clips are too short.
    """
    size, skip = round(WINDOW_S * sample_rate), round(AFTER_PEAK_S * sample_rate)
    needed = size + size // 2
    if audio.shape[-1] < needed + skip:
        raise ValueError(f"audio: expected clips of at least {(needed + skip) / sample_rate:.2f} s, got {audio.shape}")
    loudest = audio.abs().amax(dim=1).argmax(dim=-1)
    start = (loudest + skip).clamp(max=audio.shape[-1] - needed)
    cut = torch.stack([clip[:, s : s + needed] for clip, s in zip(audio.float(), start.tolist(), strict=True)])
    windows = cut.unfold(-1, size, size // 2) * torch.hann_window(size)
    power = torch.fft.rfft(windows).abs().square().mean(dim=(1, 2))  # [N, frequency]
    low, high = (round(hz * WINDOW_S) for hz in BAND_HZ)
    floor, strongest = power[:, low : high + 1].median(dim=-1).values, power.amax(dim=-1)
    tiny = torch.finfo(power.dtype).tiny
    return 10 * ((floor + tiny) / (strongest + tiny)).log10()
