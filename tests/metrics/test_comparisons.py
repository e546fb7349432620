"""Metrics that compare generated with real clips: what they keep, forget, report and refuse."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.copies import MOST_LISTED, Copies
from audio_diffusion.metrics.distance import Distances, TextAgreement
from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.distances.neighbours import precision_recall_density_coverage
from audio_diffusion.metrics.embeddings.embedding import Windows, embed_clips
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.metric import Clips, Metric, Subject, check_metric, unpadded
from audio_diffusion.metrics.signal_comparison import SignalComparison

RATE = 4000
SUBJECT = Subject(RATE, 1, seed=3)


def clips(count: int, seed: int, gain: float = 0.1, source: str = "x") -> Clips:
    audio = gain * torch.randn(count, 1, RATE, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(count, 1, RATE, dtype=torch.bool)
    return Clips(audio, mask, [f"{source}{i}" for i in range(count)], [None] * count)


def updated(metric: Metric, **sources: Clips) -> Metric:
    metric.start(SUBJECT)
    for source, of_source in sources.items():
        metric.update(of_source, source)
    return metric


def test_every_distance_is_measured_on_windows_that_are_embedded_once() -> None:
    real, made = clips(110, 0), clips(120, 1, gain=0.3)
    embedding = LogMel(RATE)
    measures = {"kad": kad, "left_out": None, "shares": precision_recall_density_coverage}
    metric = updated(Distances(embedding, measures), real=real, generated=made)
    check_metric(metric)
    figures = metric.compute()
    assert list(figures) == ["kad", "precision", "recall", "density", "coverage"]
    vectors = [embed_clips(embedding, unpadded(of), RATE) for of in (made, real)]
    assert figures["kad"].value == kad(*vectors, seed=SUBJECT.seed).value
    assert figures["kad"].note.startswith("120 windows against 110; floor ")
    assert metric.details()["estimates"]["kad"]["windows"] == 120
    json.dumps(metric.details())
    printed = "\n".join(metric.describe())
    assert "120 windows of 120 generated clips, 110 windows of 110 real clips" in printed

    metric.forget_generated()
    metric.update(real, "generated")
    assert metric.compute()["kad"].value < figures["kad"].value / 100


def test_too_few_windows_give_a_reason_and_no_number() -> None:
    metric = updated(Distances(LogMel(RATE), {"kad": kad}), real=clips(5, 0), generated=clips(6, 1))
    figure = metric.compute()["kad"]
    assert math.isnan(figure.value)
    assert "too few: 6 generated windows and 5 real windows, at least 50 are needed" in figure.note
    assert any("too few" in line for line in metric.describe())


def test_padding_is_left_out_of_what_is_embedded() -> None:
    mask = torch.ones(2, 1, RATE, dtype=torch.bool)
    mask[0, :, 1000:] = False
    mask[1] = False
    cut = unpadded(replace(clips(2, 0), mask=mask))
    assert [clip.shape for clip in cut] == [(1, 1000)]


def test_distances_without_a_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one distance"):
        Distances(LogMel(RATE), {"kad": None})


def test_signal_statistics_are_shown_beside_each_other(tmp_path: Path) -> None:
    metric = updated(SignalComparison(), real=clips(6, 0, 0.1), generated=clips(6, 1, 0.2))
    check_metric(metric)
    figures = metric.compute()
    assert figures["rms_dbfs"].value - figures["rms_dbfs_real"].value == pytest.approx(6, abs=0.1)
    assert figures["spectrum_difference_db"].value == pytest.approx(6, abs=1)
    assert "stereo_width" not in figures  # of mono clips
    assert len(metric.describe()) == 9
    assert metric.draw(tmp_path)["long-term spectrum"].is_file()
    metric.forget_generated()
    assert "rms_dbfs" not in metric.compute()
    assert metric.draw(tmp_path) == {}


def test_copies_are_listed_by_name_and_drawn(tmp_path: Path) -> None:
    train, held_out = clips(20, 0, source="train"), clips(10, 1, source="held_out")
    made = clips(10, 2, source="made")
    audio = made.audio.clone()
    audio[4] = -0.5 * train.audio[7].roll(40, -1)
    metric = updated(Copies(LogMel(RATE), None), real=held_out, train=train, generated=replace(made, audio=audio))
    check_metric(metric)
    flags = metric.details()["flags"]
    assert ("made4", "train7") in {(flag["clip"], flag["nearest"]) for flag in flags if flag["measure"] == "waveform"}
    figures = metric.compute()
    assert figures["copies"].value >= 1
    assert figures["correlation_max"].value > 0.98 > figures["correlation_max_held_out"].value
    assert any("made4 resembles train7" in line for line in metric.describe())
    assert metric.draw(tmp_path)["nearest training clips"].is_file()

    metric.forget_generated()
    assert metric.compute()["copies"].note == "no clips: generated"
    metric.update(train, "generated")
    assert metric.describe()[-1] == f"  and {len(metric.details()['flags']) - MOST_LISTED} more: see evaluation.json"


class Hears:
    """An embedding of audio and texts, in which "loud" and "quiet" lie where such sounds do."""

    name, sample_rate, width, kind = "hears", RATE, 2, "clap"

    def embed(self, audio: Tensor) -> Windows:
        is_loud = float(audio.square().mean().sqrt() > 0.2)
        return Windows(torch.tensor([[is_loud, 1 - is_loud]]), 0)

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0] if text == "loud" else [0.0, 1.0] for text in texts])


def test_text_agreement_compares_clips_with_their_own_texts() -> None:
    loud, quiet = replace(clips(6, 0, 0.5), texts=["loud"] * 6), replace(clips(6, 1, 0.1), texts=["quiet"] * 6)
    metric = TextAgreement(Hears())
    check_metric(metric)
    metric.start(SUBJECT)
    assert metric.compute()["text_agreement"].note == "no generated clips"
    for batch in (loud, quiet):
        metric.update(batch, "generated")
    figure = metric.compute()["text_agreement"]
    assert figure.value == 1
    assert "floor 0" in figure.note
    with pytest.raises(ValueError, match="no condition that is a text"):
        metric.update(clips(2, 0), "generated")
    with pytest.raises(ValueError, match=r"expected a CLAP, .* got log-mel 1"):
        TextAgreement(LogMel(RATE))
