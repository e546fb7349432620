"""Taking white noise away: a noisy clip is an x_t already, of the time at which the process has that much noise."""

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
    """Standard deviation of the noise in clips ``[B, C, T]`` of which the signal-to-noise ratio is known, ``[B]``.

    Raises:
        ValueError: for a ratio that is not finite.
    """
    if not math.isfinite(snr_db):
        raise ValueError(f"snr_db: expected a finite number of dB, got {snr_db}")
    power = noisy.square().flatten(1).mean(1)
    return (power / (1 + 10 ** (snr_db / 10))).sqrt()


def estimated_noise_std(noisy: Tensor, window: int = 512, num_bands: int = 16) -> Tensor:
    """Standard deviation of the white noise in clips ``[B, C, T]``, float ``[B]``.

    White noise has the same power everywhere, and its powers in a spectrogram are exponential. So the quietest
    quarter of each band is looked at, and the quietest band believed: where no band is ever without signal, or the clip
    has been low-passed, the estimate is wrong, and ``noise_std`` is better given.

    Args:
        noisy: the clips; digital silence in them is left out.
        window: samples of a spectrogram's frame, or the clip's length if that is less.
        num_bands: of equal width.
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
    """Clips ``[B, C, T]`` without the white noise of ``noise_std`` in them: the chain starts where it has that much.

    One network call gives the mean of all signals it may have been, nearest to the truth in SNR, but muffled, as
    what is uncertain is left out. A deterministic sampler goes on from there to a signal that sounds like the
    data; for Gaussian data of variance s² its squared error is 2s²(1 - s/√(s² + σ²)), at s = σ 0.7 dB above the least,
    s²σ²/(s² + σ²). A stochastic one, a draw of what it may have been, has twice the least (3 dB).

    Args:
        net: the network, in eval mode.
        process: schedule and parameterization it was trained with.
        sampler: one of ``diffusion.solvers``, its options bound; None is the mean, in one network call.
        noisy: clean clip plus noise.
        noise_std: standard deviation of the noise: one for all, since all are asked about at the same times.
        seeds: one seed a clip, of what a stochastic sampler draws.
        cond: conditions, each ``[B, ..]``.
        guidance: all that can be said about it; None is none.
        on_step: told (t, x0 estimate) after each network evaluation.

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
