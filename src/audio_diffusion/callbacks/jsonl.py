"""The local log of a run: ``metrics.jsonl``, which is always complete."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonlLogger(Logger):
    """Appends every logged row to ``metrics.jsonl``, one JSON object per line, independently of other loggers.

    Rows that cannot be written, for example because the disk is full, are kept and written with a later one, in order.
    """

    def __init__(self, run_dir: str):
        super().__init__()
        self.path = Path(run_dir, "metrics.jsonl")
        self._unwritten = b""

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        self._unwritten += json.dumps(row).encode() + b"\n"
        self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write()

    def _write(self) -> None:
        """Writes all pending rows, or none of them."""
        if not self._unwritten:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0) as f:
            end = f.seek(0, os.SEEK_END)
            data = self._unwritten if _ends_a_line(f, end) else b"\n" + self._unwritten
            try:
                if f.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                f.truncate(end)
                raise
        self._unwritten = b""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in config.yaml, beside this file."""


def _ends_a_line(f: Any, end: int) -> bool:
    """Whether a file of this size ends with a complete line, which it does not if its writer was killed."""
    if end == 0:
        return True
    f.seek(end - 1)
    return f.read(1) == b"\n"
