"""The LightningModule under a real Trainer: EMA, validation and resuming, compared bit by bit."""

import dataclasses

import lightning as L
import pytest
import torch

from audio_diffusion.callbacks.checkpoint import SaveCheckpoint
from audio_diffusion.callbacks.cluster import preemption
from audio_diffusion.callbacks.cluster.preemption import StopWhenAsked
from audio_diffusion.callbacks.diagnostics import Diagnostics


class TouchAtStep(L.Callback):
    """Makes a file at a step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            self.path.touch()


def test_ema_is_updated_once_per_optimizer_step_also_under_accumulation(make_run, same):
    for accumulate in (1, 2):
        run = make_run(max_steps=3, accumulate=accumulate)
        run.fit()
        assert run.module.ema.num_updates == run.trainer.global_step == 3
    assert not same(run.module.ema.net.state_dict(), run.module.net.state_dict())


def test_accumulated_batches_train_as_one_large_one(make_run):
    losses = []
    for accumulate in (1, 2, 4):
        run = make_run(max_steps=4, accumulate=accumulate, callbacks=[Diagnostics(every_n_steps=1)])
        run.fit()
        losses.append(torch.tensor([row["train/loss"] for row in run.rows if "train/loss" in row]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=0)
    assert losses[0][0] != losses[0][3]


def test_two_validations_of_the_same_weights_agree_exactly(make_run):
    run = make_run(max_steps=2, callbacks=[Diagnostics(every_n_steps=1)])
    run.fit()
    run.rows.clear()
    for _ in range(2):
        run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    first, second = [row for row in run.rows if "val/loss" in row]
    assert first == second
    assert first["val/loss"] != first["val/loss_ema"]


def test_validation_does_not_depend_on_the_batch_size(make_run):
    losses = []
    for batch_size in (2, 3, 8):  # 8 held-out clips or so: the last batch has empty slots
        run = make_run(max_steps=1, batch_size=batch_size, callbacks=[Diagnostics()], lr=0.0)
        run.trainer.validate(run.module, datamodule=run.data, verbose=False)
        losses.append(run.rows[-1]["val/loss"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=0)


@pytest.mark.parametrize("stopped_by", ["a kill after step 3", "the stop file at step 3", "the end at step 3"])
def test_resuming_equals_never_having_stopped_to_the_bit(make_run, tmp_path, stopped_by, monkeypatch, same):
    monkeypatch.setattr(preemption, "_SECONDS_BETWEEN_LOOKS", 0.0)
    through = make_run(max_steps=8, val_every=2, callbacks=[Diagnostics(every_n_steps=1)])
    through.fit()

    save = SaveCheckpoint(str(tmp_path), every_n_steps=1 if "kill" in stopped_by else 100)
    stop = StopWhenAsked(str(tmp_path / "stop"))
    stopped = make_run(
        max_steps=3 if "end" in stopped_by else 8, val_every=2, callbacks=[Diagnostics(every_n_steps=1), save, stop]
    )
    if "file" in stopped_by:
        stopped.trainer.callbacks.insert(0, TouchAtStep(3, tmp_path / "stop"))
    if "kill" in stopped_by:
        stopped.trainer.fit_loop.epoch_loop.max_steps = 3
    stopped.fit()
    assert stopped.trainer.global_step == 3

    resumed = make_run(max_steps=8, val_every=2, callbacks=[Diagnostics(every_n_steps=1)], weight_seed=99)
    resumed.fit(ckpt_path=tmp_path / "checkpoints" / "step_00000003.ckpt")

    assert resumed.trainer.global_step == 8
    assert same(resumed.module.state_dict(), through.module.state_dict())
    assert same(resumed.trainer.optimizers[0].state_dict(), through.trainer.optimizers[0].state_dict())
    assert [row for row in resumed.rows if row["step"] > 3] == [row for row in through.rows if row["step"] > 3]


def test_a_learning_rate_given_for_a_resumed_run_is_the_one_it_takes(make_run, tmp_path):
    make_run(max_steps=2, callbacks=[SaveCheckpoint(str(tmp_path))], lr=1e-3).fit()
    resumed = make_run(max_steps=4, callbacks=[Diagnostics(every_n_steps=1)], lr=2e-4)
    resumed.fit(ckpt_path=tmp_path / "checkpoints" / "step_00000002.ckpt")
    assert [row["train/lr"] for row in resumed.rows if "train/lr" in row] == pytest.approx([2e-4, 2e-4])


def test_what_a_network_draws_itself_is_the_same_after_a_resume(make_run, tmp_path, same):
    def with_dropout(**options):
        run = make_run(
            callbacks=[SaveCheckpoint(str(tmp_path / str(options["max_steps"])), every_n_steps=2)], **options
        )
        run.module.net.register_forward_hook(lambda net, _, out: torch.nn.functional.dropout(out, 0.3))
        return run

    through = with_dropout(max_steps=4)
    through.fit()
    torch.rand(7)  # a resumed program has drawn other things before
    resumed = with_dropout(max_steps=4, weight_seed=3)
    resumed.fit(ckpt_path=tmp_path / "4" / "checkpoints" / "step_00000002.ckpt")
    assert same(resumed.module.state_dict(), through.module.state_dict())


def test_sums_of_the_log_go_on_after_a_resume_on_any_number_of_ranks(make_run, tmp_path):
    through = make_run(max_steps=6, callbacks=[Diagnostics(every_n_steps=6)])
    through.fit()
    stopped = make_run(max_steps=4, callbacks=[Diagnostics(every_n_steps=6), SaveCheckpoint(str(tmp_path))])
    stopped.fit()
    path = tmp_path / "checkpoints" / "step_00000004.ckpt"
    resumed = make_run(max_steps=6, callbacks=[Diagnostics(every_n_steps=6)])
    resumed.fit(ckpt_path=path)
    assert resumed.rows == through.rows
    content = torch.load(path, weights_only=True)
    content["diagnostics"] = torch.cat(
        [content["diagnostics"] - 1, torch.ones_like(content["diagnostics"])]
    )  # two ranks
    torch.save(content, path)
    resumed = make_run(max_steps=6, callbacks=[Diagnostics(every_n_steps=6)])
    resumed.fit(ckpt_path=path)
    assert resumed.rows[0]["train/loss"] == pytest.approx(through.rows[0]["train/loss"], rel=1e-6)


def test_the_checkpoint_is_plain_data_and_holds_all(make_run, tmp_path):
    run = make_run(max_steps=2, callbacks=[SaveCheckpoint(str(tmp_path), every_n_steps=1, keep=1)], recipe={"a": 1})
    run.fit()
    path, manifest = sorted((tmp_path / "checkpoints").iterdir())  # one kept, no temporary file left
    assert manifest.name == "step_00000002.json"
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 2
    assert content["config"] == {"a": 1}
    state = content["AudioDataModule"]
    assert (state["position"], state["step"]) == (2 * run.data.batch_size, 2)
    assert {name.split(".")[0] for name in content["state_dict"]} == {"net", "ema"}
    assert content["optimizer_states"]


def test_padding_is_trained_on_unless_masked(make_run):
    batch = next(iter_batches(make_run))
    batch.audio[:, :, 1000:] = 0
    batch.num_valid[:] = 1000
    losses = {}
    for masked in (False, True):
        module = make_run(mask_padding=masked).module
        before = module.validation_step(batch, 0)["raw"]
        batch.audio[:, :, 1000:] = 0.5
        losses[masked] = (before, module.validation_step(batch, 0)["raw"])
        batch.audio[:, :, 1000:] = 0
    assert losses[False][0] != losses[False][1]
    torch.testing.assert_close(*losses[True], rtol=0.5, atol=0)  # only through the network's view of it


def test_empty_slots_do_not_count(make_run):
    batch = next(iter_batches(make_run))
    module = make_run().module
    loss = module.training_step(batch, 0)["losses"]
    batch.num_valid[1] = 0
    out = module.training_step(batch, 0)
    assert out["losses"][1] == 0
    assert torch.equal(out["losses"][0], loss[0])
    assert torch.allclose(out["loss"], (loss.sum() - loss[1]) / len(loss))  # the others weigh what they weighed


def test_t_is_spread_evenly_over_a_step_whatever_the_ranks(make_run):
    """Stratum by position: each of the eight ranges of u once in a step, and a half batch draws its half of them."""
    batch = next(iter_batches(make_run))
    module = make_run().module
    module.loss.strata = len(batch)
    t = module.training_step(batch, 0)["t"]
    index = [int((value.item() - 1e-6) * len(batch)) for value in t]
    assert sorted(index) == list(range(len(batch)))
    half = dataclasses.replace(
        batch,
        audio=batch.audio[2:],
        num_valid=batch.num_valid[2:],
        label=batch.label[2:],
        positions=batch.positions[2:],
    )
    assert torch.equal(module.training_step(half, 0)["t"], t[2:])
    module.loss.strata = 1
    assert not torch.equal(module.training_step(batch, 0)["t"], t)


def test_strata_must_be_positive(make_run):
    module = make_run().module
    with pytest.raises(ValueError, match="strata: expected 1 or more, got 0"):
        type(module.loss)(strata=0)


def iter_batches(make_run):
    run = make_run(max_steps=1)
    run.data.trainer = run.trainer
    run.data.setup()
    return iter(run.data.train_dataloader())
