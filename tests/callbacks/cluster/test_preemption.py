"""Whose signal handlers are there while a run trains, and afterwards."""

import signal

import lightning as L
import torch

from audio_diffusion.callbacks.cluster.preemption import StopWhenAsked
from audio_diffusion.checkpoints import signals


class Handlers(L.Callback):
    """Keeps the handlers of a step."""

    def on_train_batch_end(self, *args):
        self.found = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}


def test_the_handlers_are_ours_while_training_and_as_before_afterwards(make_run):
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    handlers = Handlers()
    make_run(max_steps=1, callbacks=[StopWhenAsked(), handlers]).fit()
    assert handlers.found[signal.SIGTERM] is handlers.found[signal.SIGUSR1] is signals._remember  # not Lightning's
    if before[signal.SIGINT] is not signal.SIG_IGN:
        assert handlers.found[signal.SIGINT] is not before[signal.SIGINT]
    assert {s: signal.getsignal(s) for s in before} == before


def test_one_rank_that_is_asked_stops_after_the_step_it_is_in(make_run, monkeypatch):
    monkeypatch.setattr(signals, "_received", [])
    stop = StopWhenAsked(every_n_steps=1000)

    class Ask(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 2:
                signal.raise_signal(signal.SIGUSR1)

    run = make_run(max_steps=50, accumulate=2, callbacks=[Ask(), stop])
    run.fit()
    assert run.trainer.global_step == 3  # whole steps: gradients that were accumulated are not lost
    assert stop.status == 128 + signal.SIGUSR1
    assert all(torch.isfinite(p).all() for p in run.module.parameters())
