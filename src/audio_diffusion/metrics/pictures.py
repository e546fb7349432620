"""Figures of clips, the reverse process, the content of a data set, and the loss by noise level."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

FLOOR_DB = -90.0
_COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red")
_LABEL = 18  # characters of a row's title that fit beside it


def mel_db(audio: Tensor, sample_rate: int, n_mels: int = 64) -> Tensor:
    """Mel spectrogram in dB of full scale, ``[C, T] -> [n_mels, frames]``; channels are averaged.

    The window is about 32 ms, the hop a quarter of it; nothing is shown below -90 dB.
    """
    n_fft = 2 ** max(6, round(torch.log2(torch.tensor(sample_rate * 0.032)).item()))
    n_fft = min(n_fft, 2 ** (audio.shape[-1].bit_length() - 1))
    import torchaudio  # not at the top: it takes long, and training begins without it

    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft, hop_length=max(1, n_fft // 4), n_mels=min(n_mels, n_fft // 8), power=2.0
    )
    power = mel(audio.detach().cpu().float().mean(0)) / (n_fft / 4) ** 2  # a full-scale sine is near 0 dB
    return 10 * torch.log10(power.clamp(min=10 ** (FLOOR_DB / 10)))


def _mel(hz: float) -> float:
    """Place of a frequency on the mel scale that torchaudio uses (HTK's)."""
    return 2595 * math.log10(1 + hz / 700)


def _show_mel(axes: Axes, audio: Tensor, sample_rate: int) -> None:
    """The mel spectrogram of one channel ``[T]``, with frequencies in Hz and kHz."""
    top = sample_rate / 2
    axes.imshow(
        mel_db(audio[None], sample_rate).numpy(), origin="lower", aspect="auto", cmap="magma", vmin=FLOOR_DB, vmax=0,
        extent=(0, audio.shape[-1] / sample_rate, 0, _mel(top)), interpolation="nearest",
    )  # fmt: skip
    ticks = [hz for hz in (500, 1000, 2000, 4000, 8000, 16000) if hz <= 0.9 * top]
    is_first = axes.get_subplotspec().is_first_col()  # type: ignore[union-attr]
    words = [f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in ticks] if is_first else [""] * len(ticks)
    axes.set_yticks([_mel(hz) for hz in ticks], words)


def _show_wave(axes: Axes, audio: Tensor, sample_rate: int, scale: float) -> None:
    """The waveform of one channel ``[T]``, divided by ``scale``."""
    times = torch.arange(audio.shape[-1]) / sample_rate
    axes.plot(times.numpy(), (audio / scale).numpy(), linewidth=0.4)
    axes.set_xlim(0, audio.shape[-1] / sample_rate)
    axes.set_ylim(-1.05, 1.05)
    axes.set_yticks([-1, 0, 1] if axes.get_subplotspec().is_first_col() else [])  # type: ignore[union-attr]
    axes.tick_params(labelbottom=False)


def shortened(words: str, most: int) -> str:
    """Shortens text to a number of characters by leaving out its middle."""
    if len(words) <= most:
        return words
    begin = (most - 1) // 2
    return f"{words[:begin]}…{words[len(words) - (most - 1 - begin) :]}"


def _db(magnitude: Tensor) -> float:
    return 20 * math.log10(max(magnitude.item(), 1e-6))


def _level(audio: Tensor) -> str:
    """Peak and level of a clip ``[C, T]``, in dB of full scale."""
    peak = audio.abs().max()
    drawn = " (drawn at 0)" if peak > 1 else ""
    return f"peak {_db(peak):.1f}{drawn}, RMS {_db(audio.square().mean().sqrt()):.1f} dBFS"


@dataclass
class Row:
    """A row of clips in a picture.

    Args:
        title: what they are.
        clips: each ``[C, T]``; None leaves a place empty, under its name.
        names: of each clip, or why there is none.
        made: (start, end) in seconds of the regenerated part of each clip, which is shaded; None for the whole clip.
    """

    title: str
    clips: Sequence[Tensor | None]
    names: Sequence[str]
    made: Sequence[Sequence[tuple[float, float]]] | None = None


def sample_grid(rows: Sequence[Row], sample_rate: int) -> Figure:
    """Rows of clips: each channel as waveform above mel spectrogram (0 to half the rate; -90 to 0 dB of full scale).

    Above each clip are its name, peak and RMS; the waveform of a clip over full scale is drawn scaled down to it.

    Args:
        rows: e.g. real clips above, generated ones below.
        sample_rate: Hz.
    """
    columns = max(len(row.clips) for row in rows)
    channels = [max((len(clip) for clip in row.clips if clip is not None), default=1) for row in rows]
    figure, axes = plt.subplots(
        2 * sum(channels), columns, squeeze=False, layout="constrained",
        figsize=(max(1.7 * columns + 1.5, 4), 2.6 * sum(channels) + 0.2),
        gridspec_kw={"height_ratios": [1, 1.6] * sum(channels)},
    )  # fmt: skip
    first = 0
    for row, count in zip(rows, channels, strict=True):
        for column in range(columns):
            _show_clip(list(axes[first : first + 2 * count, column]), row, column, sample_rate)
        for channel in range(count):
            name = "" if count == 1 else f" {'LR'[channel]}" if count == 2 else f" {channel + 1}"
            title = shortened(row.title, _LABEL)
            size = 9 if len(title) < 0.75 * _LABEL else 7
            axes[first + 2 * channel, 0].set_ylabel(f"{title}{name}", fontsize=size, parse_math=False)
        first += 2 * count
    colours = ScalarMappable(Normalize(FLOOR_DB, 0), "magma")
    bar = figure.colorbar(colours, ax=axes.ravel().tolist(), aspect=40, fraction=0.02, pad=0.01)
    bar.set_label("dB of full scale", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return figure


def _show_clip(axes: Sequence[Axes], row: Row, column: int, sample_rate: int) -> None:
    """Draws a clip into its column: two axes a channel. A place without a clip keeps its name and its row's title."""
    clip = row.clips[column] if column < len(row.clips) else None
    if clip is None:
        for place in axes:
            place.set(frame_on=False, xticks=[], yticks=[])
        if column < len(row.clips) and column < len(row.names):
            axes[0].set_title(row.names[column], fontsize=6, parse_math=False)
        return
    clip = clip.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0)
    scale = max(clip.abs().max().item(), 1.0)
    made = row.made[column] if row.made is not None else ()
    for channel, samples in enumerate(clip):
        wave, mel = axes[2 * channel], axes[2 * channel + 1]
        _show_wave(wave, samples, sample_rate, scale)
        _show_mel(mel, samples, sample_rate)
        for start, end in made:
            wave.axvspan(start, end, color="tab:orange", alpha=0.25, linewidth=0)
            for edge in (start, end):
                mel.axvline(edge, color="white", linewidth=0.6, linestyle="--")
        for place in (wave, mel):
            place.xaxis.set_major_locator(MaxNLocator(nbins=3))
            place.tick_params(labelsize=6)
        mel.tick_params(labelbottom=channel == len(clip) - 1)
    for place in axes[2 * len(clip) :]:
        place.set_axis_off()
    level = _level(clip)
    size = 6 if len(level) < 30 else 5  # a longer line runs into the next column's
    axes[0].set_title(f"{row.names[column]}\n{level}", fontsize=size, parse_math=False)
    axes[2 * len(clip) - 1].set_xlabel("seconds", fontsize=6, labelpad=1)


def reverse_process(points: Sequence[tuple[float, Tensor]], sample_rate: int) -> Figure:
    """The network's estimate of the clean audio at times t from noise (left) to audio (right).

    Args:
        points: (t, estimate ``[C, T]``).
        sample_rate: Hz.
    """
    clips, names = [clip for _, clip in points], [f"t = {t:.2f}" for t, _ in points]
    return sample_grid([Row("x0 estimate", clips, names)], sample_rate)


def noise_levels(snr_db: Sequence[float], loss: Sequence[float], bits_per_db: Sequence[float], title: str) -> Figure:
    """Loss (above) and bits per dimension per dB (below, the area is L_t) by noise level, from noise to clean.

    Args:
        snr_db: signal-to-noise ratio of each level, dB.
        loss: mean squared error of the noise estimate.
        bits_per_db: bits per dimension, per dB.
        title: of the picture.
    """
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5.4), layout="constrained")
    above.plot(snr_db, loss, marker=".", color="tab:blue")
    above.set_yscale("log")
    above.axhline(1, color="grey", linewidth=0.8, linestyle="--", label="nothing known of the noise")
    above.set_ylabel("mean squared error of noise")
    above.legend(fontsize=8, frameon=False, loc="lower right")
    above.set_title(title, fontsize=10)
    below.plot(snr_db, bits_per_db, marker=".", color="tab:orange")
    below.fill_between(snr_db, bits_per_db, alpha=0.2, color="tab:orange", label="area: L_t")
    below.axhline(1 / 6.02, color="grey", linewidth=0.8, linestyle="--", label="loud white noise, 1 bit per 6.02 dB")
    below.set_ylim(bottom=0)
    below.set_ylabel("bits per dimension per dB")
    below.set_xlabel("signal-to-noise ratio of x_t, dB   (noise on the left, nearly clean on the right)")
    below.legend(fontsize=8, frameon=False, loc="upper left")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def long_term_spectrum(
    centres_hz: Sequence[float], curves: Mapping[str, Sequence[tuple[float, float, float]]]
) -> Figure:
    """Level in third-octave bands of several sets of clips: the mean as a line, 5 to 95 % of the clips as an area.

    Args:
        centres_hz: of the bands.
        curves: name of a set -> (mean, 5 %, 95 %) of each band, dB of full scale.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for colour, (name, bands) in zip(_COLOURS, curves.items(), strict=False):
        mean, low, high = zip(*bands, strict=True)
        axes.plot(centres_hz, mean, marker=".", color=colour, label=name)
        axes.fill_between(centres_hz, low, high, alpha=0.15, color=colour, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value / 1000:g}k")
    axes.set_xlabel("Hz (third-octave bands)")
    axes.set_ylabel("dB of full scale")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def quality_against_calls(
    name: str, curves: Mapping[str, Sequence[tuple[float, float, tuple[float, float] | None, float]]]
) -> Figure:
    """A figure of generated clips, and the speed, against the number of network evaluations per clip.

    Args:
        name: of the figure.
        curves: by the name of the sampler: (network evaluations, value, 95 % interval, real-time factor) of each point.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for colour, (label, points) in zip(itertools.cycle(_COLOURS), curves.items()):
        points = sorted(points, key=lambda point: point[0])
        calls, values, intervals, speeds = zip(*points, strict=True)
        above.plot(calls, values, marker=".", color=colour, label=label)
        if all(interval is not None for interval in intervals):
            low, high = zip(*(interval for interval in intervals if interval is not None), strict=True)
            above.fill_between(calls, low, high, alpha=0.15, color=colour, linewidth=0)
        below.plot(calls, speeds, marker=".", color=colour, label=label)
    for axes, words in ((above, f"{name} (95 %)"), (below, "seconds of audio per second")):
        axes.set_ylabel(words)
        axes.grid(alpha=0.3)
    below.set_xscale("log", base=2)
    below.set_yscale("log")
    below.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for set_formatter in (below.yaxis.set_major_formatter, below.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")
    below.set_xlabel("network evaluations per clip")
    above.legend(fontsize=8, frameon=False)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG and frees it; returns the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name may have signs that the font lacks
        figure.savefig(path, dpi=90)
    plt.close(figure)
    return Path(path)


def _show_counts(axes: Axes, lefts: Sequence[float], widths: Sequence[float], counts: Sequence[int]) -> None:
    axes.bar(lefts, counts, width=widths, align="edge", color="tab:blue", edgecolor="white", linewidth=0.4)
    axes.set_ylabel("clips")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _show_classes(axes: Axes, labels: Mapping[str, int], unlabelled: int, most: int = 30) -> None:
    """The largest classes as bars; the others together as one."""
    ranked = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))
    bars = [(name if len(name) <= 28 else f"{name[:27]}…", count, "tab:blue") for name, count in ranked[:most]]
    if len(ranked) > most:
        rest = sum(count for _, count in ranked[most:])
        bars.append((f"{len(ranked) - most} smaller classes", rest, "tab:gray"))
    if unlabelled:
        bars.append(("without a label", unlabelled, "tab:orange"))
    names, counts, colors = zip(*reversed(bars), strict=True)
    drawn = axes.barh(range(len(bars)), counts, color=colors)
    axes.bar_label(drawn, fontsize=7, padding=2)
    axes.set_yticks(range(len(bars)), names, fontsize=8, parse_math=False)
    axes.set_ylim(min(len(bars), 8) - 8.6, len(bars) - 0.4)  # few bars stand at the top, none broader than an eighth
    axes.set_xlim(0, 1.12 * max(counts))
    axes.set_xlabel("clips")
    axes.set_title("no classes" if not labels else f"{len(labels)} class{'es' * (len(labels) > 1)}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def data_set(manifest: Mapping[str, Any]) -> Figure:
    """Draws the content of a data set: the distribution of durations, levels and classes of its clips.

    Args:
        manifest: the manifest that make_shards.py writes.
    """
    num_bars = min(len(manifest["labels"]), 31) + (manifest["unlabelled"] > 0)
    figure = plt.figure(figsize=(11, max(5.0, 1.2 + 0.21 * num_bars)), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    durations, levels, classes = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))
    starts = [start for start, _ in manifest["durations_s"]["histogram"]]
    ratio = 10**0.1
    _show_counts(durations, starts, [start * (ratio - 1) for start in starts],
                 [count for _, count in manifest["durations_s"]["histogram"]])  # fmt: skip
    durations.set_xscale("log")
    durations.set_xlim(min(starts) / ratio**4, max(starts) * ratio**5)
    durations.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (durations.xaxis.set_major_formatter, durations.xaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")
    durations.set_xlabel("seconds")
    shortest, mean, longest = (manifest["durations_s"][name] for name in ("shortest", "mean", "longest"))
    durations.set_title(f"durations: {shortest:.3g} to {longest:.4g} s, mean {mean:.3g} s")
    bars = manifest["levels_dbfs"]["histogram"]
    _show_counts(levels, [level for level, _ in bars], [1] * len(bars), [count for _, count in bars])
    levels.set_xlim(min(-60, bars[0][0] - 1), max(0, bars[-1][0] + 2))
    levels.set_xlabel("rms, dBFS")
    levels.set_title(f"levels: mean {manifest['levels_dbfs']['mean']:.1f} dBFS")
    _show_classes(classes, manifest["labels"], manifest["unlabelled"])
    clips = ", ".join(f"{count} {split}" for split, count in manifest["clips"].items() if count)
    figure.suptitle(f"{manifest['hours']:.3g} hours in {sum(manifest['clips'].values())} clips ({clips})")
    return figure
