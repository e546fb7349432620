"""Signal statistics of sounds for which they are known."""

import math

import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from audio_diffusion.metrics.signal_statistics import (
    UNITS,
    clip_statistics,
    spectrum_difference,
    spectrum_picture,
    summarise,
    third_octave_bands,
)

RATE = 16_000


def sine(hz: float, amplitude: float = 1.0, seconds: float = 1.0) -> Tensor:
    time = torch.arange(round(RATE * seconds), dtype=torch.float64) / RATE
    return amplitude * torch.sin(2 * math.pi * hz * time)[None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_a_sine() -> None:
    values = clip_statistics(sine(1000, 0.5), RATE).values
    assert set(values) == set(UNITS)
    assert values["peak_dbfs"] == pytest.approx(-6.02, abs=0.01)
    assert values["rms_dbfs"] == pytest.approx(-9.03, abs=0.01)
    assert values["crest_db"] == pytest.approx(3.01, abs=0.01)
    assert values["dc"] == pytest.approx(0, abs=1e-9)
    assert values["clipped"] == values["silent"] == 0
    assert math.isnan(values["stereo_width"])


def test_of_clipping_offset_and_silence() -> None:
    assert clip_statistics(sine(1000, 2.0).clamp(-1, 1), RATE).values["clipped"] == pytest.approx(2 / 3, abs=0.05)
    assert clip_statistics(sine(1000) + 0.25, RATE).values["dc"] == pytest.approx(0.25)
    half = torch.cat([sine(1000), torch.zeros(1, RATE)], dim=1)
    assert clip_statistics(half, RATE).values["silent"] == pytest.approx(0.5)
    silence = clip_statistics(torch.zeros(2, 100), RATE)
    assert silence.values["rms_dbfs"] == silence.values["peak_dbfs"] == -120
    assert math.isnan(silence.values["crest_db"])
    assert math.isnan(silence.values["stereo_width"])
    assert (silence.bands_dbfs == -120).all()


def test_stereo_width() -> None:
    left, right = noise(1, 50_000), noise(1, 50_000, seed=1)

    def width(*channels: Tensor) -> float:
        return clip_statistics(torch.cat(channels), RATE).values["stereo_width"]

    assert width(left, left) == 0
    assert width(left, -left) == 1
    assert width(left, right) == pytest.approx(0.5, abs=0.02)
    assert width(left, 0 * left) == pytest.approx(0.5)


def test_levels_of_bands_add_up() -> None:
    centres = third_octave_bands(RATE)
    assert centres[0] == pytest.approx(24.8, abs=0.1)
    assert centres[-1] == pytest.approx(6350, abs=1)
    assert 1000 in centres
    tone = clip_statistics(sine(1000, 0.5), RATE).bands_dbfs
    assert tone[centres.index(1000)].item() == pytest.approx(-9.03, abs=0.01)
    assert (tone < -9.1).sum() == len(centres) - 1
    white = clip_statistics(0.1 * noise(2, 4 * RATE), RATE).bands_dbfs
    share = sum(10 ** (level / 10) for level in white.tolist()) / 0.01
    covered = (centres[-1] * 2 ** (1 / 6) - centres[0] * 2 ** (-1 / 6)) / (RATE / 2)
    assert share == pytest.approx(covered, rel=0.02)
    slope = (white[-1] - white[-13]).item() / 4  # per octave; a third-octave band doubles its width with each
    assert slope == pytest.approx(3.01, abs=0.15)
    # a clip much shorter than a period of the lowest band has a level in each, and the same in sum
    short = clip_statistics(sine(1000, 0.5, 0.1), RATE)
    assert short.bands_dbfs.isfinite().all()
    assert sum(10 ** (level / 10) for level in short.bands_dbfs.tolist()) == pytest.approx(0.125, rel=0.02)


def test_a_set_is_summarised_with_its_spread() -> None:
    clips = [sine(1000, 10 ** (level / 20)) for level in (-30, -20, -10)] + [torch.zeros(1, 100).double()]
    summary = summarise(clips, RATE)
    peak = summary.values["peak_dbfs"]
    assert (peak.count, peak.median) == (4, pytest.approx(-25, abs=0.01))
    assert peak.mean == pytest.approx((-30 - 20 - 10 - 120) / 4, abs=0.01)
    assert peak.error == pytest.approx(peak.std / 2)
    assert summary.values["crest_db"].count == 3  # silence has none
    assert summary.values["crest_db"].std == pytest.approx(0, abs=1e-9)
    assert summary.values["stereo_width"].count == 0
    assert math.isnan(summary.values["stereo_width"].mean)
    assert len(summary.bands) == len(summary.centres_hz)
    assert math.isnan(summarise(clips[:1], RATE).values["peak_dbfs"].std)


def test_spectra_are_compared_and_drawn() -> None:
    real = summarise([noise(1, RATE, seed=i) for i in range(3)], RATE)
    quieter = summarise([0.5 * noise(1, RATE, seed=i) for i in range(3)], RATE)
    assert spectrum_difference(quieter, real) == pytest.approx(6.02, abs=0.01)
    assert spectrum_difference(real, real) == 0
    figure = spectrum_picture(quieter, real)
    assert [line.get_label() for line in figure.axes[0].lines] == ["real", "generated"]
    plt.close(figure)
    with pytest.raises(ValueError, match="the same bands"):
        spectrum_difference(real, summarise([noise(1, RATE)], 8000))


def test_bad_audio_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected floating point \[C, T\], got torch.float32 \[3\]"):
        clip_statistics(torch.zeros(3), RATE)
    with pytest.raises(ValueError, match="finite"):
        clip_statistics(torch.tensor([[0.0, torch.nan]]), RATE)
    with pytest.raises(ValueError, match="at least one"):
        summarise([], RATE)
