"""The time a system may train for: CPU time of its process, or, on a GPU, time by the clock."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch


def now(device: str) -> float:
    """Seconds, of which differences count: CPU time of all threads of this process, or the clock once the GPU is
    idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Budget(L.Callback):
    """Ends training when its time is spent, and writes what was spent.

    Args:
        seconds: the time.
        file: json file with the seconds spent, the steps taken, and the seconds of a step.
        device: cpu or cuda.
    """

    def __init__(self, seconds: float, file: str, device: str = "cpu"):
        self.seconds, self.file, self.device = seconds, Path(file), device
        self._start, self._ends = 0.0, list[float]()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = now(self.device)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._ends.append(now(self.device) - self._start)
        if self._ends[-1] >= self.seconds:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ends = self._ends
        skipped = min(2, len(ends) - 1)  # the first steps allocate memory and choose kernels
        each = (ends[-1] - ends[skipped - 1]) / (len(ends) - skipped) if skipped else ends[-1]
        parameters = sum(parameter.numel() for parameter in pl_module.net.parameters())  # type: ignore[union-attr]
        spent = {"seconds": ends[-1], "steps": len(ends), "seconds_per_step": each, "parameters": parameters}
        self.file.write_text(json.dumps(spent), encoding="utf-8")
