"""Removal of white noise: a noisy clip is treated as the x_t of the time with the same amount of noise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.vary import From, grid_of, time_of_noise
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.seeding import SeededNoise
from audio_diffusion.diffusion.solvers.solver import OnStep, Sampler

_QUANTILE = 0.25


def noise_std_at(noisy: Tensor, snr_db: float) -> Tensor:
    """Returns the standard deviation of the noise ``[B]`` in clips ``[B, C, T]`` of a known signal-to-noise ratio.

    Raises:
        ValueError: if the ratio is not finite.
    """
    if not math.isfinite(snr_db):
        raise ValueError(f"snr_db: expected a finite number of dB, got {snr_db}")
    power = noisy.square().flatten(1).mean(1)
    return (power / (1 + 10 ** (snr_db / 10))).sqrt()


def estimated_noise_std(noisy: Tensor, window: int = 512, num_bands: int = 16) -> Tensor:
    """Estimates the standard deviation of the white noise in clips ``[B, C, T]``, float ``[B]``.

    White noise has the same power in all bands and frames, with an exponential distribution. The estimate is based on
    the lower quartile of the power in each band, of which the lowest is used. It is wrong if every band always contains
    signal, or if the clip was low-passed; give ``noise_std`` then.

    Args:
        noisy: the clips; digital silence in them is ignored.
        window: samples per frame of the spectrogram, or the clip's length if that is less.
        num_bands: number of bands of equal width.
    """
    window = min(window, noisy.shape[-1])
    hann = torch.hann_window(window, device=noisy.device)
    flat = noisy.float().flatten(0, 1)
    spectrum = torch.stft(flat, window, window // 2, window=hann, center=False, return_complex=True)
    power = (spectrum.abs().square() / hann.square().sum()).unflatten(0, noisy.shape[:2])[:, :, 1:-1]
    power = torch.where(power > 0, power, torch.nan)
    bands = [band.flatten(1).nanquantile(_QUANTILE, dim=1) for band in power.tensor_split(num_bands, dim=2)]
    quiet = torch.stack(bands).nan_to_num(torch.inf).amin(0)
    quiet = torch.where(quiet.isinf(), 0.0, quiet)
    return (quiet / -math.log1p(-_QUANTILE)).sqrt()


@torch.no_grad()
def remove_noise(
    net: Net,
    process: Diffusion,
    sampler: Sampler | None,
    noisy: Tensor,
    noise_std: float,
    seeds: Sequence[int],
    cond: Cond,
    *,
    guidance: Guidance | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Removes white noise of standard deviation ``noise_std`` from clips; returns ``[B, C, T]``.

    Sampling starts at the time with that much noise. One network call gives the posterior mean, which has the best SNR
    but sounds muffled, as it leaves out uncertain components. A deterministic sampler continues to a signal that sounds
    like the data; for Gaussian data of variance s² its squared error is 2s²(1 - s/√(s² + σ²)), which at s = σ is 0.7 dB
    above the minimum s²σ²/(s² + σ²). A stochastic sampler draws from the posterior and has twice the minimum (3 dB).

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization it was trained with.
        sampler: one of ``diffusion.solvers``, with its options bound; None for the mean, in one network call.
        noisy: clean clips plus noise, ``[B, C, T]``.
        noise_std: standard deviation of the noise, the same for all clips, as they share the time grid.
        seeds: one seed per clip, for the draws of a stochastic sampler.
        cond: conditions, each ``[B, ..]``.
        guidance: all options of guidance; None for no guidance.
        on_step: called with (t, x0 estimate) after each network evaluation.

    Raises:
        ValueError: if ``noise_std`` is not positive.
    """
    if not noise_std > 0:
        raise ValueError(f"noise_std: expected a positive standard deviation, got {noise_std}")
    denoise = (guidance or Guidance()).denoiser(process, net, cond)
    start = time_of_noise(process.schedule, noise_std)
    alpha, sigma = process.schedule.at(start)
    if sampler is None:
        return denoise(alpha * noisy, start).x0
    noise, grid = SeededNoise(seeds, noisy.shape[1:], noisy.device), From(start, grid_of(sampler))
    x_t = alpha / math.hypot(alpha, sigma) * noisy
    return sampler(denoise, x_t, process.schedule, noise, grid=grid, on_step=on_step)
