"""Compilation: announced, shielded, never stuck; what a killed compiler leaves is removed."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from audio_diffusion.callbacks import compiling
from audio_diffusion.callbacks.cluster.heartbeat import Heartbeat
from audio_diffusion.callbacks.compiling import Compiling, remove_broken_libraries
from audio_diffusion.checkpoints import signals

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.slow
@linux
def test_a_compilers_processes_see_no_signals_and_the_heartbeat_waits(make_run, monkeypatch) -> None:
    """The backend is asked for by torch.compile, as its own is; it starts a process that prints its blocked signals."""
    masks, paused, said = [], [], []
    monkeypatch.setattr(compiling, "rank_zero_info", said.append)
    heartbeat = Heartbeat(minutes=10)

    def backend(graph, inputs):
        paused.append(heartbeat._paused)
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        masks.append(int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16))
        return graph.forward

    run = make_run(max_steps=2, callbacks=[heartbeat, Compiling()])
    run.module.net.compile(backend=backend)
    run.fit()
    assert masks
    assert all(mask & 1 << signum - 1 for mask in masks for signum in (signal.SIGINT, *signals.STOP_SIGNALS))
    assert paused == [True] * len(masks)
    assert not heartbeat._paused
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(signals.STOP_SIGNALS)
    assert sum("compiling the network (training.compile=true), which takes minutes" in line for line in said) == 1
    assert any(line.startswith("compiled in") for line in said)


def test_nothing_is_registered_for_a_network_that_is_not_compiled(make_run) -> None:
    from torch._dynamo.callback import callback_handler

    before = list(callback_handler.start_callbacks)
    run = make_run(max_steps=1, callbacks=[Compiling()])
    run.fit()
    assert callback_handler.start_callbacks == before


@linux
def test_libraries_that_end_too_early_are_removed(tmp_path: Path) -> None:
    whole = next(Path(sysconfig.get_paths()["stdlib"], "lib-dynload").glob("*.so")).read_bytes()
    files = {"whole.so": whole, "empty.so": b"", "cut.so": whole[:-100], "header.so": whole[:30], "young.so": b""}
    (tmp_path / "ab").mkdir()
    for name, content in files.items():
        (tmp_path / "ab" / name).write_bytes(content)
        if name != "young.so":
            os.utime(tmp_path / "ab" / name, (time.time() - 1000,) * 2)
    removed = remove_broken_libraries(tmp_path)
    assert sorted(path.name for path in removed) == ["cut.so", "empty.so", "header.so"]
    assert sorted(path.name for path in (tmp_path / "ab").iterdir()) == ["whole.so", "young.so"]
