"""Which steps are taken: what is skipped leaves no trace, in no part of the state, and is counted."""

import math
from functools import partial

import lightning as L
import pytest
import torch

from audio_diffusion.callbacks.checkpoint import SaveCheckpoint
from audio_diffusion.callbacks.diagnostics import Diagnostics
from audio_diffusion.training.guard import StepGuard


def test_what_is_not_finite_is_skipped_and_counted() -> None:
    guard = StepGuard()
    assert [guard.judge(norm) for norm in (1.0, math.nan, math.inf, 1e30)] == [True, False, False, True]
    assert (guard.num_skipped, guard.skipped_in_a_row, guard.reason) == (2, 0, None)


def test_so_many_in_a_row_end_the_run_and_fewer_do_not() -> None:
    guard = StepGuard(max_skipped_in_a_row=3)
    for _ in range(4):
        assert [guard.judge(norm) for norm in (math.nan, math.nan, 1.0)] == [False, False, True]
    guard.judge(math.nan)
    guard.judge(math.nan)
    with pytest.raises(ValueError, match=r"3 steps in a row were skipped .*max_skipped_in_a_row.*norm nan"):
        guard.judge(math.nan)


def test_an_explosion_is_far_above_the_median_and_a_new_level_is_got_used_to() -> None:
    guard = StepGuard(max_growth=5, window=4)
    assert all(guard.judge(norm) for norm in (1, 50, 1, 1, 4.9))  # no judgement before the window is full
    assert not guard.judge(100)
    assert guard.reason is not None
    assert "its norm 100 is more than training.guard.max_growth = 5 times" in guard.reason
    assert [guard.judge(100) for _ in range(3)] == [False, True, True]


def test_a_restored_guard_judges_as_the_one_before() -> None:
    first, second = StepGuard(max_growth=2, window=3), StepGuard(max_growth=2, window=3)
    for norm in (1, 2, 3, 9):
        first.judge(norm)
    second.load_state_dict(first.state_dict())
    assert [first.judge(n) for n in (5, 7, 30)] == [second.judge(n) for n in (5, 7, 30)]
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize("options", [{"max_skipped_in_a_row": 0}, {"window": 0}, {"max_growth": 1.0}])
def test_bad_numbers_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        StepGuard(**options)


class Poison(L.Callback):
    """Makes a clip of some batches what it should not be, and keeps the state before and after each step."""

    def __init__(self, value: float, *batches: int):
        self.value, self.batches = value, batches
        self.states: list[list[torch.Tensor]] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx in self.batches:
            batch.audio[1] = self.value
            self.named = f"loss is not finite: {batch.keys[1]} (position {batch.positions[1]} of the stream)"
        self._keep(trainer, module)

    def on_train_end(self, trainer, module) -> None:
        self._keep(trainer, module)

    def _keep(self, trainer, module) -> None:
        moments = [v for state in trainer.optimizers[0].state.values() for v in state.values()]
        weights = [*module.net.parameters(), *module.ema.net.parameters(), torch.tensor(module.ema.num_updates)]
        self.states.append([torch.as_tensor(x).detach().clone() for x in (*weights, *moments)])


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [math.nan, 1e25], ids=["nan", "overflow"])
def test_a_skipped_step_changes_nothing_and_the_run_goes_on(make_run, value: float, fused: bool) -> None:
    poison = Poison(value, 2)
    run = make_run(max_steps=4, callbacks=[Diagnostics(every_n_steps=2), poison], clip=0.01)
    run.module.make_optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=fused)
    with pytest.warns(UserWarning, match="step 3 skipped: .*not finite") as warned:
        run.fit()
    assert sum(poison.named in str(warning.message) for warning in warned) == 1
    assert same(poison.states[2], poison.states[3])
    assert not same(poison.states[1], poison.states[2])
    assert not same(poison.states[3], poison.states[4])
    assert run.trainer.global_step == 4
    assert run.data.state_dict()["position"] == 16
    assert run.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4
    assert [row["train/skipped_steps"] for row in run.rows if "train/skipped_steps" in row] == [0, 1, 1]
    assert all(math.isfinite(row["train/loss"]) for row in run.rows if "train/loss" in row)


def test_one_bad_batch_of_an_accumulated_step_skips_the_step(make_run) -> None:
    poison = Poison(math.nan, 2)
    run = make_run(max_steps=3, accumulate=2, callbacks=[Diagnostics(every_n_steps=1), poison])
    with pytest.warns(UserWarning, match=r"step 2 skipped"):
        run.fit()
    assert same(poison.states[2], poison.states[4])
    assert not same(poison.states[4], poison.states[6])


def test_resuming_after_a_skipped_step_is_exact(make_run, tmp_path) -> None:
    """With a rule that judges by the norms before, which must therefore be in the checkpoint."""

    def train(steps: int, folder, ckpt=None):
        run = make_run(max_steps=steps, callbacks=[SaveCheckpoint(str(tmp_path / folder), 3), Poison(math.nan, 2)])
        run.module.guard = StepGuard(max_growth=1.001, window=2, max_skipped_in_a_row=100)
        run.data.max_steps = 8
        run.fit(ckpt)
        return run

    through = train(8, "a")
    train(3, "b")
    again = train(8, "b", tmp_path / "b" / "checkpoints" / "step_00000003.ckpt")
    assert through.module.guard.num_skipped > 1  # the NaN, and more by growth
    assert through.module.guard.state_dict() == again.module.guard.state_dict()
    assert same(list(through.module.state_dict().values()), list(again.module.state_dict().values()))


def test_a_run_that_is_all_nan_ends_and_saves_none_of_it(make_run, tmp_path) -> None:
    poison = Poison(math.nan, *range(2, 50))
    run = make_run(max_steps=50, callbacks=[SaveCheckpoint(str(tmp_path), every_n_steps=1), poison])
    with pytest.raises(ValueError, match="10 steps in a row were skipped"):
        run.fit()
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.as_tensor(value).isfinite().all() for value in state.values())


def test_a_loss_that_jumps_is_warned_of_once(make_run, monkeypatch) -> None:
    run = make_run(max_steps=1)
    said = []
    monkeypatch.setattr("audio_diffusion.callbacks.diagnostics.send_alert", lambda *args: said.append(args[1:]))
    callback = Diagnostics(alert_growth=3.0)
    for loss in [*[1.0] * 19, 9.0, 1.0, 3.1, 4.0, 1.0, 2.9]:  # the 9 comes before there are 20 to compare with
        callback._alert(run.trainer, loss)
    assert len(said) == 1
    assert "train/loss is 3.1, more than 3 times the 1 that is usual" in said[0][1]
