"""Metrics of generated clips while training: the figures of evaluate.py's classes, without a trace in the training."""

from functools import partial
from typing import Any

import pytest
import torch

from audio_diffusion.callbacks.metrics import GenerationMetrics
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.metrics.copies import Copies
from audio_diffusion.metrics.distance import Distances
from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.metric import Clips, Figure, Metric, Subject
from audio_diffusion.metrics.signal_comparison import SignalComparison

SUBJECT = Subject(16000, 1, ["clap", "hat", "kick", "snare", "tom"], seed=2)


class Seen(Metric):
    """Keeps what it is given."""

    needs = ("real", "generated")

    def start(self, subject: Subject) -> None:
        self.clips: dict[str, list[Clips]] = {"real": [], "generated": []}

    def update(self, clips: Clips, source: str) -> None:
        self.clips[source].append(clips)

    def compute(self) -> dict[str, Figure]:
        level = self.clips["generated"][0].audio.square().mean().item()
        return {"level": Figure(level, interval=(level / 2, 2 * level)), "unknown": Figure(float("nan"), note="why")}

    def forget_generated(self) -> None:
        self.clips["generated"] = []


def measuring(**options: Any) -> GenerationMetrics:
    metrics = options.pop("metrics", {"signal": SignalComparison()})
    few = {"num_generated": 7, "num_real": 5, "batch_size": 4, **options}
    return GenerationMetrics(metrics, partial(ddim, num_steps=2), SUBJECT, **few)


def test_generated_clips_have_the_conditions_of_held_out_ones_in_turn(make_run: Any) -> None:
    seen = Seen()
    callback = measuring(metrics={"seen": seen, "left_out": None})
    run = make_run(max_steps=4, val_every=2, callbacks=[callback])
    with pytest.warns(UserWarning, match="metrics/unknown could not be measured: why"):
        run.fit()
    (real,), (made,) = seen.clips["real"], seen.clips["generated"]  # real ones once, generated ones of the last time
    assert (len(real), len(made)) == (5, 7)
    assert made.labels == [*real.labels, *real.labels[:2]]
    assert len(set(made.names)) == 7
    assert made.audio.shape == (7, 1, 2048)
    rows = [row for row in run.rows if "metrics/level" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[-1]["metrics/level_high"] == pytest.approx(4 * rows[-1]["metrics/level_low"])
    assert "metrics/unknown" not in rows[-1]


def test_every_nth_validation_is_measured(make_run: Any) -> None:
    run = make_run(max_steps=6, val_every=2, callbacks=[measuring(every_n_validations=2)])
    run.fit()
    assert [row["step"] for row in run.rows if "metrics/rms_dbfs" in row] == [2, 6]


def test_the_clips_do_not_depend_on_the_batch_size(make_run: Any) -> None:
    levels = []
    for batch_size in (2, 7):
        run = make_run(max_steps=1, lr=0.0, val_every=1, callbacks=[measuring(batch_size=batch_size)])
        run.fit()
        levels.append(next(row["metrics/rms_dbfs"] for row in run.rows if "metrics/rms_dbfs" in row))
    assert levels[0] == pytest.approx(levels[1], abs=1e-3)


def test_training_is_the_same_with_and_without(make_run: Any) -> None:
    weights = []
    distances = {"distances": Distances(LogMel(), {"kad": kad})}
    for callbacks in ([], [measuring(metrics=distances)]):
        run = make_run(max_steps=4, val_every=2, callbacks=callbacks)
        run.fit()
        weights.append([p.detach().clone() for p in run.module.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_failure_is_a_warning_and_training_continues(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    monkeypatch.setattr(seen, "compute", lambda: 1 / 0)
    run = make_run(max_steps=2, val_every=2, callbacks=[measuring(metrics={"seen": seen})])
    with pytest.warns(UserWarning, match="metrics failed; training continues without it"):
        run.fit()
    assert run.trainer.global_step == 2


@pytest.mark.parametrize("name", ["every_n_validations", "num_generated", "num_real", "batch_size"])
def test_bad_numbers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        measuring(**{name: 0})


def test_metrics_that_need_more_than_generated_and_real_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"metrics\.copies: .* Copies needs real, train, generated: measure it by"):
        measuring(metrics={"copies": Copies(LogMel())})
    with pytest.raises(ValueError, match="expected at least one, got none"):
        measuring(metrics={"kad": None})
