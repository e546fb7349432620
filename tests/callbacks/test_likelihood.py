"""Bits per dimension while training: of the EMA weights, exact to repeat, without a trace in the training."""

import pytest
import torch

from audio_diffusion.callbacks.likelihood import LogLikelihood

NAMES = {
    "val/bits_per_dim", "val/bits_L_T", "val/bits_L_t", "val/bits_L_0", "val/bits_standard_error",
    "val/bits_monte_carlo_error",
}  # fmt: skip


def measuring(folder, **options) -> LogLikelihood:
    return LogLikelihood(str(folder), **{"num_clips": 6, "num_levels": 2, **options})


def measured(run) -> list[dict]:
    return [row for row in run.rows if "val/bits_per_dim" in row]


@pytest.mark.slow
def test_every_nth_validation_is_measured_and_pictured(make_run, tmp_path):
    run = make_run(max_steps=6, val_every=2, callbacks=[measuring(tmp_path, every_n_validations=2)])
    run.fit()
    rows = measured(run)
    assert [row["step"] for row in rows] == [2, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002.png", "step_00000006.png"]
    for row in rows:
        assert row.keys() >= NAMES
        parts = row["val/bits_L_T"] + row["val/bits_L_t"] + row["val/bits_L_0"]
        assert row["val/bits_per_dim"] == pytest.approx(parts)
        assert 0 < row["val/bits_monte_carlo_error"] < row["val/bits_per_dim"]


@pytest.mark.slow
def test_the_same_ema_weights_give_exactly_the_same_bits_and_others_do_not(make_run, tmp_path):
    run = make_run(max_steps=1, callbacks=[measuring(tmp_path)])
    run.fit()

    def again() -> float:
        run.trainer.validate(run.module, datamodule=run.data, verbose=False)
        return measured(run)[-1]["val/bits_per_dim"]

    first = again()
    with torch.no_grad():
        for parameter in run.module.net.parameters():
            parameter.add_(0.1)
    assert again() == first
    with torch.no_grad():
        for parameter in run.module.ema.net.parameters():
            parameter.add_(0.1)
    assert again() != first


def test_which_clips_are_measured_does_not_depend_on_the_batch_size(make_run, tmp_path):
    bits = []
    for batch_size in (2, 4):
        run = make_run(max_steps=1, batch_size=batch_size, lr=0.0, val_every=1, callbacks=[measuring(tmp_path)])
        run.fit()
        bits.append(measured(run)[0]["val/bits_per_dim"])
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)


def test_training_is_the_same_with_and_without(make_run, tmp_path):
    weights = []
    for callbacks in ([], [measuring(tmp_path)]):
        run = make_run(max_steps=4, val_every=2, callbacks=callbacks)
        run.fit()
        weights.append([p.detach().clone() for p in run.module.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("name", ["every_n_validations", "num_clips", "num_levels", "repeats"])
def test_bad_numbers_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        measuring(tmp_path, **{name: 0})
