"""Figures of clips: waveforms, mel spectrograms and the reverse process. Those of numbers are in ``charts``."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

FLOOR_DB = -90.0
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


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG and frees it; returns the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name may have signs that the font lacks
        figure.savefig(path, dpi=90)
    plt.close(figure)
    return Path(path)
