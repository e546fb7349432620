"""Supports torch.compile in a run: announces it, shields it from signals, and pauses the heartbeat meanwhile."""

import contextlib
import os
import struct
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from audio_diffusion.callbacks.cluster.heartbeat import Heartbeat
from audio_diffusion.checkpoints import signals

_WRITING_S = 60.0  # a library that was modified within this time may be incomplete
_ELF = struct.Struct("<40xQ10xHH")  # 64-bit header: offset of the section table, size of an entry, number of entries


class Compiling(L.Callback):
    """If ``training.compile`` is on, announces compilation and protects it from interruption.

    During compilation the heartbeat is paused, and signals that stop a run do not reach the compiler's processes: a
    killed compiler leaves an incomplete library in torch's cache, with which every later run fails. The run stops after
    compilation. Incomplete libraries of killed compilers are removed before training.
    """

    def __init__(self) -> None:
        self._shield = contextlib.ExitStack()
        self._heartbeat: Heartbeat | None = None
        self._announced, self._begun_at = False, 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or getattr(pl_module.net, "_compiled_call_impl", None) is None:
            return
        with signals.shielded(tracked=True):  # the compiler's helper processes may be started by this import
            from torch._dynamo import callback
            from torch._inductor.runtime.cache_dir_utils import cache_dir

        if trainer.local_rank == 0:
            for path in remove_broken_libraries(Path(cache_dir())):
                rank_zero_info(f"compiling: removed {path}, an incomplete file of a compiler that was killed")
        self._heartbeat = next((c for c in trainer.callbacks if isinstance(c, Heartbeat)), None)  # type: ignore[attr-defined]
        callback.on_compile_start(self._start)
        callback.on_compile_end(self._end)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._remove()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        from torch._dynamo.callback import callback_handler

        if self._start in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(self._start)
            callback_handler.remove_end_callback(self._end)
        self._shield.close()

    def _start(self, args: Any) -> None:
        self._shield.enter_context(signals.shielded())
        self._begun_at = time.monotonic()
        if self._heartbeat is not None:
            self._heartbeat.pause("compiling the network")
        if not self._announced:
            self._announced = True
            rank_zero_info(
                "compiling the network (training.compile=true), which takes minutes; it happens in the first steps and "
                "in the first validation. A stop request takes effect afterwards"
            )

    def _end(self, args: Any) -> None:
        self._shield.close()
        if self._heartbeat is not None:
            self._heartbeat.resume("compiled the network")
        rank_zero_info(f"compiled in {time.monotonic() - self._begun_at:.0f} s")


def remove_broken_libraries(folder: Path) -> list[Path]:
    """Removes the shared libraries below a folder that end before their header says so; returns their paths.

    Libraries modified in the last minute are kept, since another run may be compiling them.
    """
    removed = []
    for path in folder.glob("**/*.so"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _WRITING_S and _is_broken(path):
                path.unlink()
                removed.append(path)
    return removed


def _is_broken(path: Path) -> bool:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(64)
    if header[:4] != b"\x7fELF":
        return size == 0  # macOS and Windows have other formats
    if len(header) < 64:
        return True
    offset, entry_bytes, entries = _ELF.unpack(header[: _ELF.size])
    return offset + entry_bytes * entries > size
