"""Figures by a classifier of real clips: right on clips whose class is known, silent where labels are missing."""

import math
import re
from collections.abc import Sequence

import pytest
import torch

from audio_diffusion.metrics.classes import Classes
from audio_diffusion.metrics.classifier import fit, held_out_logits
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.metric import Clips, Subject

RATE, NAMES = 8000, ["high", "low", "noise"]


def clips(labels: Sequence[str | None], seed: int, sounds: Sequence[str] | None = None) -> Clips:
    """Tones and noise, each as its label says, or as ``sounds`` do."""
    generator = torch.Generator().manual_seed(seed)
    t, made = torch.arange(4000) / RATE, []
    for sound in sounds or labels:
        hz = {"low": 300.0, "high": 2500.0}.get(str(sound), 0.0) * (1 + 0.2 * torch.rand(1, generator=generator))
        noise = torch.randn(4000, generator=generator)
        made.append(0.2 * torch.sin(6.2832 * hz * t) + 0.002 * noise if hz else 0.1 * noise)
        made[-1] *= sound != "silence"
    audio = torch.stack(made)[:, None]
    names = [f"{seed} {i}" for i in range(len(audio))]
    return Clips(audio, torch.ones(len(audio), 1, 4000, dtype=torch.bool), names, list(labels))


def measured(real: Clips, *generated: Clips) -> Classes:
    metric = Classes(LogMel(RATE))
    metric.start(Subject(RATE, 1))
    metric.update(real, "real")
    for some in generated:
        metric.update(some, "generated")
    return metric


REAL = clips(NAMES * 12, 1)


def test_clips_that_sound_like_their_class_are_named_so() -> None:
    metric = measured(REAL, clips(NAMES * 5, 2), clips(NAMES * 5, 3))
    found = metric.compute()
    for name in ("class_accuracy", "class_accuracy_real"):
        assert found[name].value > 0.97
        low, high = found[name].interval or (0, 0)
        assert low < found[name].value <= high <= 1
    assert 2 < found["inception_score"].value <= 3
    assert found["am_score"].value < 0.6
    assert all(found[name].interval is not None for name in ("fid", "modified_inception_score", "am_score"))
    assert set(metric.details()["classes"]) == set(NAMES)
    assert any("100.0% of 10" in line for line in metric.describe())


def test_one_class_for_all_is_worse_in_each_figure_that_sees_it() -> None:
    metric = measured(REAL, clips(NAMES * 10, 2))
    good = metric.compute()
    metric.forget_generated()
    metric.update(clips(NAMES * 10, 2, sounds=["low"] * 30), "generated")
    poor = metric.compute()
    assert poor["class_accuracy"].value == pytest.approx(1 / 3)
    assert poor["class_accuracy_real"] == good["class_accuracy_real"]
    assert poor["inception_score"].value < 1.2 < good["inception_score"].value
    assert poor["fid"].value > 10 * good["fid"].value
    assert poor["am_score"].value > good["am_score"].value + 0.3
    named = metric.details()["classes"]["high"]["named"]
    assert named == {"low": 10}


def test_silence_is_named_as_no_class_and_unlabelled_clips_are_left_out() -> None:
    generated = clips([*NAMES * 5, "low", None], 2, sounds=[*NAMES * 5, "silence", "low"])
    found = measured(REAL, generated).compute()["class_accuracy"]
    assert found.value == pytest.approx(15 / 16)
    assert found.note.startswith("of 16; 3 classes")


@pytest.mark.parametrize(
    ("real", "generated", "note"),
    [
        ([None] * 20, NAMES * 5, "expected at least 2 classes with 5 labelled real clips each; .* no label"),
        (["low"] * 10 + ["high"] * 4, NAMES * 5, "the real clips have: low 10, high 4"),
        (NAMES * 6, [None] * 15, "generated clips have no labels"),
    ],
)
def test_missing_labels_are_a_note_and_not_a_number(real: list, generated: list, note: str) -> None:
    found = measured(clips(real, 1), clips(generated, 2, sounds=NAMES * 5)).compute()
    assert math.isnan(found["class_accuracy"].value)
    assert re.search(note, found["class_accuracy"].note)


def test_few_generated_clips_have_no_scores() -> None:
    found = measured(REAL, clips(["low", "high"], 2)).compute()
    assert found["class_accuracy"].value == 1
    assert "needs 6 clips" in found["fid"].note


def test_the_classifier_minimises_its_loss_and_held_out_vectors_are_not_fitted() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, labels = torch.randn(60, 200, generator=generator), torch.arange(60) % 3
    classifier = fit(vectors, labels, 3, penalty=1.0)
    share = (classifier.logits(vectors).softmax(1) - torch.nn.functional.one_hot(labels, 3)).T
    gradient = share @ ((vectors.double() - classifier.mean) / classifier.scale) + classifier.weight
    assert gradient.abs().max() < 1e-3
    assert (classifier.logits(vectors).argmax(1) == labels).all()  # more components than vectors: noise is learnt
    accuracy = (held_out_logits(vectors, labels, 3).argmax(1) == labels).double().mean()
    assert accuracy < 0.6  # and says nothing of vectors that were held out
    assert torch.equal(held_out_logits(vectors, labels, 3), held_out_logits(vectors, labels, 3))


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="folds: expected at least 2, got 1"):
        Classes(LogMel(RATE), folds=1)
    with pytest.raises(ValueError, match="penalty: expected a positive number, got 0"):
        Classes(LogMel(RATE), penalty=0)
