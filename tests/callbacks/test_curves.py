"""Diagnostics, throughput, checkpoints, preemption: what they log and leave."""

import json
import re
import sys
from types import SimpleNamespace
from warnings import catch_warnings as recorded_warnings

import lightning as L
import pytest
import torch

from audio_diffusion.callbacks import throughput
from audio_diffusion.callbacks.checkpoint import SaveCheckpoint
from audio_diffusion.callbacks.cluster.preemption import StopWhenAsked
from audio_diffusion.callbacks.diagnostics import Diagnostics
from audio_diffusion.callbacks.jsonl import JsonlLogger
from audio_diffusion.callbacks.loggers import has_wandb_credentials, wandb_logger
from audio_diffusion.callbacks.progress_bar import ProgressBar
from audio_diffusion.callbacks.throughput import Throughput


def test_loss_by_noise_level_is_consistent_with_the_whole(make_run):
    run = make_run(max_steps=4, batch_size=6, accumulate=2, callbacks=[Diagnostics(every_n_steps=2, num_buckets=2)])
    run.fit()
    rows = [row for row in run.rows if "train/loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        low, high = row["train/loss_t_0.0-0.5"], row["train/loss_t_0.5-1.0"]
        assert min(low, high) <= row["train/loss"] <= max(low, high)
        assert row["train/grad_norm"] > 0
    assert rows[0]["train/lr"] == pytest.approx(1e-3)


def test_gradient_norm_is_the_norm_before_clipping(make_run):
    clipped = make_run(max_steps=1, callbacks=[Diagnostics(every_n_steps=1)], clip=1e-3)
    free = make_run(max_steps=1, callbacks=[Diagnostics(every_n_steps=1)])
    clipped.fit()
    free.fit()
    assert clipped.rows[0]["train/grad_norm"] == free.rows[0]["train/grad_norm"]


def test_throughput_counts_audio_and_waiting(make_run):
    run = make_run(max_steps=4, callbacks=[Throughput(16000, every_n_steps=2)])
    run.fit()
    rows = [row for row in run.rows if "speed/audio_seconds_per_second" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert 0 <= row["speed/data_wait_percent"] <= 100
    last = rows[-1]  # audio-seconds per step are known: the two speeds must agree
    per_step = run.data.batch_size * 2048 / 16000
    assert last["speed/audio_seconds_per_second"] == pytest.approx(per_step * last["speed/steps_per_second"], rel=1e-6)


@pytest.mark.parametrize(("every_s", "shown"), [(0, {0, 1, 2, 3, 4}), (1e9, {0, 1, 4})])
def test_the_progress_bar_is_shown_by_the_clock_at_the_start_and_at_the_end(make_run, capfd, every_s, shown):
    make_run(max_steps=4, callbacks=[ProgressBar(every_s)]).fit()
    assert {int(n) for n in re.findall(r"(\d)/4 \[", capfd.readouterr().out)} == shown


def test_the_last_line_of_the_progress_bar_is_where_a_run_was_stopped(make_run, capfd):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 3

    make_run(max_steps=9, callbacks=[ProgressBar(1e9), Stop()]).fit()
    assert [int(n) for n in re.findall(r"(\d)/9 \[", capfd.readouterr().out)][-1] == 3


@pytest.mark.parametrize(("data_s", "step_s", "warnings"), [(10, 1, 1), (1, 10, 0)])
def test_a_run_that_mostly_waits_for_data_says_so_once(make_run, monkeypatch, data_s, step_s, warnings):
    now = 0.0

    def clock():
        nonlocal now
        now += {"on_train_batch_start": data_s, "on_train_batch_end": step_s}.get(sys._getframe(1).f_code.co_name, 0)
        return now

    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=clock))
    with recorded_warnings(record=True) as caught:
        make_run(max_steps=8, callbacks=[Throughput(16000, every_n_steps=2)]).fit()
    said = [str(w.message) for w in caught if "training waits for data" in str(w.message)]
    assert len(said) == warnings
    assert all("91 % of the time (steps 2 to 4): give it more data.num_workers" in message for message in said)


def test_a_stop_file_ends_the_run_with_everything_saved(make_run, tmp_path):
    stop = tmp_path / "stop"
    stop.touch()
    callbacks = [SaveCheckpoint(str(tmp_path), every_n_steps=100), StopWhenAsked(str(stop))]
    run = make_run(max_steps=50, callbacks=callbacks)
    run.fit()
    assert run.trainer.global_step == 0  # it was there before the first step
    assert (tmp_path / "stop.done").exists()
    assert callbacks[1].status == 0  # somebody waits for stop.done


def test_a_run_that_ends_by_itself_asks_for_no_requeue(make_run, tmp_path):
    run = make_run(max_steps=2, callbacks=[StopWhenAsked(str(tmp_path / "stop"), every_n_steps=1)])
    run.fit()
    assert list(tmp_path.glob("stop*")) == []


def test_the_local_log_has_every_row(tmp_path):
    logger = JsonlLogger(str(tmp_path / "run"))
    logger.log_metrics({"a": torch.tensor(1.5)}, step=1)
    logger.log_metrics({"b": 2}, step=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "a": 1.5}, {"step": 2, "b": 2.0}]


@pytest.fixture
def no_wandb(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def test_wandb_is_offline_without_credentials_and_keeps_its_id(no_wandb):
    assert not has_wandb_credentials()
    first, second = (wandb_logger(str(no_wandb / "run"), "x") for _ in range(2))
    assert first.inner._offline
    assert second.inner._offline
    assert (
        first.inner._wandb_init["id"] == second.inner._wandb_init["id"] == (no_wandb / "run" / "wandb_id").read_text()
    )
    with pytest.raises(ValueError, match="mode: expected"):
        wandb_logger(str(no_wandb), "x", mode="sometimes")


def test_wandb_credentials_are_found(no_wandb, monkeypatch):
    (no_wandb / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert has_wandb_credentials()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_wandb_credentials()
    assert not wandb_logger(str(no_wandb / "run"), "x").inner._offline


@pytest.mark.parametrize(
    "make",
    [
        lambda: Diagnostics(every_n_steps=0),
        lambda: Diagnostics(num_buckets=0),
        lambda: Throughput(16000, every_n_steps=0),
        lambda: SaveCheckpoint("x", keep=0),
        lambda: StopWhenAsked("x", every_n_steps=0),
    ],
)
def test_bad_numbers_are_refused(make):
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        make()
