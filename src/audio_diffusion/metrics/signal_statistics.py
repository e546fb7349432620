"""Signal statistics of generated clips beside those of real ones: level, clipping, DC, silence, spectrum, stereo."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from audio_diffusion.metrics.charts import long_term_spectrum

FULL_SCALE = 0.999  # a sample of at least this magnitude is clipped: 16-bit files end at 0.99997
SILENCE_DBFS = -60.0
FLOOR_DBFS = -120.0  # the level of digital silence
FRAME_S = 0.02
UNITS = {
    "rms_dbfs": "dB of full scale (a square wave of full scale has 0)",
    "peak_dbfs": "dB of full scale",
    "crest_db": "peak over RMS, dB",
    "clipped": "share of samples at or over full scale",
    "dc": "mean of all samples",
    "silent": "share of frames of 20 ms whose RMS is below -60 dBFS",
    "stereo_width": "energy of L-R over that of L-R and L+R: 0 mono, 0.5 independent channels, 1 opposite polarity",
}


@dataclass(frozen=True)
class ClipStatistics:
    """Statistics of one clip.

    Attributes:
        values: by the names of `UNITS`; NaN where a figure means nothing: ``crest_db`` of silence, ``stereo_width`` of
            silence and of clips that do not have two channels.
        bands_dbfs: level in each third-octave band, averaged over channels, ``[bands]``: see `third_octave_bands`.
    """

    values: Mapping[str, float]
    bands_dbfs: Tensor


@dataclass(frozen=True)
class Distribution:
    """Of one statistic over clips: number of clips where it is known, mean, standard deviation and quantiles.

    All but ``count`` are NaN if no clip has it; ``std`` and ``error`` (standard error of the mean) also for one clip.
    """

    count: int
    mean: float
    std: float
    error: float
    p5: float
    median: float
    p95: float


@dataclass(frozen=True)
class Summary:
    """Statistics of a set of clips.

    Attributes:
        values: distribution of each statistic, by the names of `UNITS`.
        centres_hz: centre frequencies of the bands.
        bands: distribution of the level in each band, dB of full scale.
    """

    values: Mapping[str, Distribution]
    centres_hz: list[float]
    bands: list[Distribution]


def third_octave_bands(sample_rate: int) -> list[float]:
    """Centres of third-octave bands, 1000·2^(k/3) Hz from 25 Hz up (IEC 61260), whose upper edge is below half the
    rate."""
    centres = [1000 * 2 ** (k / 3) for k in range(-16, 14)]
    return [centre for centre in centres if centre * 2 ** (1 / 6) <= sample_rate / 2]


def clip_statistics(audio: Tensor, sample_rate: int) -> ClipStatistics:
    """Statistics of one clip ``[C, T]`` of full scale ±1.

    Raises:
        ValueError: for another shape, an empty clip, or samples that are not finite.
    """
    if audio.ndim != 2 or not audio.numel() or not audio.is_floating_point():
        raise ValueError(f"audio: expected floating point [C, T], got {audio.dtype} {list(audio.shape)}")
    if not audio.isfinite().all():
        raise ValueError("audio: expected finite samples, got NaN or infinity")
    audio = audio.detach().double().cpu()
    energy, peak = audio.square().mean().item(), audio.abs().max().item()
    level, top = _dbfs(energy), _dbfs(peak**2)
    frame = min(audio.shape[1], max(1, round(FRAME_S * sample_rate)))
    frames = audio.unfold(1, frame, frame).square().mean((0, 2))
    values = {
        "rms_dbfs": level,
        "peak_dbfs": top,
        "crest_db": top - level if level > FLOOR_DBFS else math.nan,
        "clipped": (audio.abs() >= FULL_SCALE).double().mean().item(),
        "dc": audio.mean().item(),
        "silent": (frames < 10 ** (SILENCE_DBFS / 10)).double().mean().item(),
        "stereo_width": _width(audio),
    }
    return ClipStatistics(values, _bands(audio, sample_rate))


def summarise(clips: Iterable[Tensor], sample_rate: int) -> Summary:
    """Statistics of clips, each ``[C, T]``; every clip counts the same, whatever its length.

    Raises:
        ValueError: as `clip_statistics`, or if there is no clip.
    """
    return summary_of([clip_statistics(clip, sample_rate) for clip in clips], sample_rate)


def summary_of(found: Sequence[ClipStatistics], sample_rate: int) -> Summary:
    """Summarises the statistics of clips of one sample rate.

    Raises:
        ValueError: if there is no clip.
    """
    if not found:
        raise ValueError("clips: expected at least one, got none")
    bands = torch.stack([clip.bands_dbfs for clip in found], dim=1)
    return Summary(
        {name: _distribution(torch.tensor([clip.values[name] for clip in found]).double()) for name in UNITS},
        third_octave_bands(sample_rate),
        [_distribution(band) for band in bands],
    )


def spectrum_difference(generated: Summary, real: Summary) -> float:
    """Root mean square difference of the mean levels of third-octave bands, in dB.

    Raises:
        ValueError: if the bands differ, as those of other sample rates do.
    """
    if generated.centres_hz != real.centres_hz:
        raise ValueError("generated and real: expected the same bands, so the same sample rate")
    squares = [(ours.mean - theirs.mean) ** 2 for ours, theirs in zip(generated.bands, real.bands, strict=True)]
    return math.sqrt(sum(squares) / len(squares))


def spectrum_picture(generated: Summary, real: Summary) -> Figure:
    """Draws the long-term spectra of both sets."""
    sets = {"real": real, "generated": generated}
    curves = {name: [(band.mean, band.p5, band.p95) for band in summary.bands] for name, summary in sets.items()}
    return long_term_spectrum(real.centres_hz, curves)


def _dbfs(energy: float) -> float:
    return max(10 * math.log10(max(energy, 1e-20)), FLOOR_DBFS)


def _width(audio: Tensor) -> float:
    if len(audio) != 2:
        return math.nan
    middle, side = (audio[0] + audio[1]).square().sum().item(), (audio[0] - audio[1]).square().sum().item()
    return side / (middle + side) if middle + side > 0 else math.nan


def _bands(audio: Tensor, sample_rate: int) -> Tensor:
    """Level in each third-octave band, from the spectrum of the whole clip, dB of full scale, float64 ``[bands]``.

    The levels of all bands add up to the clip's, less what lies outside of them. A bin belongs to the band that its
    frequency lies in; a clip is padded to a second, so that every band has a bin.
    """
    size = max(audio.shape[1], sample_rate)
    power = torch.fft.rfft(audio, size).abs().square().mean(0) * 2 / (size * audio.shape[1])
    hz = torch.fft.rfftfreq(size, 1 / sample_rate).double()
    levels = []
    for centre in third_octave_bands(sample_rate):
        inside = (hz >= centre * 2 ** (-1 / 6)) & (hz < centre * 2 ** (1 / 6))
        levels.append(_dbfs(power[inside].sum().item()))
    return torch.tensor(levels, dtype=torch.float64)


def _distribution(values: Tensor) -> Distribution:
    values = values[values.isfinite()]
    if not len(values):
        return Distribution(0, *[math.nan] * 6)
    std = values.std().item() if len(values) > 1 else math.nan
    low, median, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    return Distribution(len(values), values.mean().item(), std, std / math.sqrt(len(values)), low, median, high)
