"""Figures of numbers: the loss by noise level, spectra, quality against network calls, the content of a data set."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

_COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red")


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
