"""callbacks=power_ema: snapshots from which averages are rebuilt, exact resuming, no trace in the training."""

from pathlib import Path

import pytest
import torch

from audio_diffusion.callbacks.checkpoint import SaveCheckpoint
from audio_diffusion.callbacks.power_ema import KeepPowerEma
from audio_diffusion.checkpoints import averages
from audio_diffusion.checkpoints.folder import all_in, path_of, problem_of, step_of
from audio_diffusion.inference.averages import rebuild
from audio_diffusion.training.guard import StepGuard
from audio_diffusion.training.power_ema import PowerEma


def keeping(folder: Path, **options) -> KeepPowerEma:
    return KeepPowerEma(str(folder / "ema"), **{"every_n_steps": 2, **options})


def steps_in(folder: Path) -> list[int]:
    paths = all_in(folder / "ema")
    assert all(problem_of(path) is None for path in paths)
    return [step_of(path) for path in paths]


def flat(state: dict) -> torch.Tensor:
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


@pytest.mark.slow
def test_any_length_is_rebuilt_from_a_run(make_run, tmp_path) -> None:
    """Against averages that were tracked in the same run, with steps so large that lengths differ."""
    run = make_run(max_steps=40, callbacks=[keeping(tmp_path)], lr=1e-2)
    tracked = PowerEma(run.module.net, (0.03, 0.07, 0.2))
    run.module.averages.append(tracked)
    run.fit()
    assert steps_in(tmp_path) == list(range(2, 41, 2))
    snapshot = tracked.snapshot(run.module.net, 40)
    for length, expected in zip(snapshot.lengths, snapshot.averages, strict=True):
        state, step = rebuild(tmp_path / "ema", length)
        assert step == 40
        assert state.keys() == run.module.net.state_dict().keys()
        error = (flat({name: state[name] for name in expected}) - flat(expected)).norm() / flat(expected).norm()
        assert error < 1e-3
    short, long = flat(snapshot.averages[0]), flat(snapshot.averages[2])
    assert (short - long).norm() > 5e-3 * long.norm()


def test_training_is_the_same_with_and_without(make_run, tmp_path, same) -> None:
    states = []
    for callbacks in ([], [keeping(tmp_path)]):
        run = make_run(max_steps=4, callbacks=callbacks)
        run.fit()
        states.append((run.module.state_dict(), run.trainer.optimizers[0].state_dict()))
        assert not run.module.averages
    assert same(*states)


@pytest.mark.slow
def test_resuming_is_as_if_never_stopped(make_run, tmp_path, same) -> None:
    """Stopped at a step that has no snapshot otherwise, after others were written that are to be trained again."""
    snapshots = {}
    for name, stops in {"through": (), "stopped": (5,)}.items():
        folder, ckpt = tmp_path / name, None
        for max_steps in (*stops, 8):
            save = SaveCheckpoint(str(folder), every_n_steps=3, keep=9)
            run = make_run(max_steps=max_steps, callbacks=[save, keeping(folder)])
            run.fit(ckpt)
            ckpt = path_of(folder / "checkpoints", 3)
        snapshots[name] = [vars(averages.read(path)) for path in all_in(folder / "ema")]
    assert [one["step"] for one in snapshots["through"]] == [2, 4, 6, 8]
    assert same(snapshots["through"], snapshots["stopped"])


def test_the_end_of_a_run_is_a_snapshot_until_the_run_continues(make_run, tmp_path) -> None:
    for max_steps, steps in {5: [2, 4, 5], 8: [2, 4, 6, 8]}.items():
        ckpt = path_of(tmp_path / "checkpoints", 5)
        run = make_run(max_steps=max_steps, callbacks=[SaveCheckpoint(str(tmp_path)), keeping(tmp_path)])
        run.fit(ckpt if ckpt.exists() else None)
        assert steps_in(tmp_path) == steps


def test_a_snapshot_that_a_kill_prevented_is_written_on_resume(make_run, tmp_path, same) -> None:
    run = make_run(max_steps=4, callbacks=[SaveCheckpoint(str(tmp_path)), keeping(tmp_path)])
    run.fit()
    lost = path_of(tmp_path / "ema", 4)
    before = vars(averages.read(lost))
    lost.with_suffix(".json").unlink()
    run = make_run(max_steps=6, callbacks=[keeping(tmp_path)])
    run.fit(path_of(tmp_path / "checkpoints", 4))
    assert steps_in(tmp_path) == [2, 4, 6]
    assert same(vars(averages.read(lost)), before)


def test_a_new_run_in_the_folder_removes_what_another_left(make_run, tmp_path) -> None:
    for max_steps, steps in {6: [2, 4, 6], 2: [2]}.items():
        make_run(max_steps=max_steps, callbacks=[keeping(tmp_path)]).fit()
        assert steps_in(tmp_path) == steps


@pytest.mark.parametrize("lengths", [None, [0.05, 0.2]])
def test_averages_that_a_checkpoint_lacks_begin_with_a_warning(make_run, tmp_path, lengths) -> None:
    before = [keeping(tmp_path, lengths=lengths)] if lengths else []
    make_run(max_steps=3, callbacks=[SaveCheckpoint(str(tmp_path)), *before]).fit()
    keep = keeping(tmp_path)
    run = make_run(max_steps=6, callbacks=[keep])
    with pytest.warns(UserWarning, match=r"averages of lengths \[0.05, 0.1\] begin at step 3, as the checkpoint has"):
        run.fit(path_of(tmp_path / "checkpoints", 3))
    last = averages.read(path_of(tmp_path / "ema", 6))
    assert (last.origin, last.num_updates, last.lengths) == (3, 3, [0.05, 0.1])
    assert rebuild(tmp_path / "ema", 0.07)[1] == 6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_only_optimizer_steps_that_are_taken_are_averaged(make_run, tmp_path, accumulate: int) -> None:
    run = make_run(max_steps=6, callbacks=[keeping(tmp_path)], accumulate=accumulate)
    run.module.guard = StepGuard(max_growth=1.001, window=2, max_skipped_in_a_row=100)
    run.fit()
    last = averages.read(path_of(tmp_path / "ema", 6))
    assert run.module.guard.num_skipped > 0
    assert last.num_updates == run.module.ema.num_updates == 6 - run.module.guard.num_skipped


def test_a_write_that_fails_is_a_warning_and_training_continues(make_run, tmp_path) -> None:
    (tmp_path / "ema").write_text("in the way")
    run = make_run(max_steps=4, callbacks=[keeping(tmp_path)])
    with pytest.warns(UserWarning, match="power_ema: a snapshot was not written: .*Training continues"):
        run.fit()
    assert [row["power_ema/failed"] for row in run.rows if "power_ema/failed" in row] == [1, 2]
    assert run.trainer.global_step == 4


def test_float16_takes_half_the_space(make_run, tmp_path) -> None:
    for dtype in ("float32", "float16"):
        make_run(max_steps=2, callbacks=[keeping(tmp_path / dtype, dtype=dtype, device="cpu")]).fit()
    whole, half = (averages.read(path_of(tmp_path / dtype / "ema", 2)) for dtype in ("float32", "float16"))
    for i in range(2):
        assert all(value.dtype == torch.float16 for value in half.averages[i].values())
        for name, value in whole.tensors(i).items():
            torch.testing.assert_close(half.tensors(i)[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [0.05]}, "lengths: expected two or more different ones"),
        ({"lengths": [0.05, 0.05]}, "lengths: expected two or more different ones"),
        ({"lengths": [0.05, 0.5]}, "length of an average: expected above 0 to 0.2887, got 0.5"),
        ({"every_n_steps": 0}, "every_n_steps: expected at least 1, got 0"),
        ({"dtype": "bfloat16"}, "dtype: expected float32 or float16, got 'bfloat16'"),
    ],
)
def test_bad_options_are_refused(tmp_path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keeping(tmp_path, **options)
