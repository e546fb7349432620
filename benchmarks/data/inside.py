"""Looks inside our pipeline: where the time goes, the first batch, memory of the workers, the cost of going on late.

Each look is a process of its own: ``python inside.py LOOK ROW`` prints json.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve import Row

STAGES = ("order", "open", "read", "decode", "resample", "convert", "collate", "rest")
LATE = 10**9  # batches


class Stopwatch:
    """CPU time spent in wrapped functions, each without what the others take inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._stack, self._since = ["rest"], time.thread_time()

    def lap(self) -> None:
        now = time.thread_time()
        self.spent[self._stack[-1]] += now - self._since
        self._since = now

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        function: Callable = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            self.lap()
            self._stack.append(stage)
            try:
                return function(*arguments, **options)
            finally:
                self.lap()
                self._stack.pop()

        setattr(owner, name, timed)


def stages(row: Row, seconds: float = 1.0) -> dict[str, float]:
    """CPU-ms a crop, by stage; also what the stopwatch itself adds, which the stages hold in proportion to calls."""
    import torch
    import torchaudio
    from ours import ours

    from audio_diffusion.data import stream
    from audio_diffusion.data.audio import reading as audio
    from audio_diffusion.data.order import Mixture

    torch.set_num_threads(1)
    plain = _cpu_ms(ours(row), row, seconds)
    watch = Stopwatch()
    for owner, name, stage in [
        (Mixture, "locate", "order"),
        (audio, "_open", "open"),
        (audio.Window, "readinto", "read"),
        (audio._Decoder, "samples", "decode"),
        (torchaudio.transforms.Resample, "forward", "resample"),
        (audio, "map_channels", "resample"),
        (audio, "_write", "convert"),
        (stream, "collate", "collate"),
    ]:
        watch.wrap(owner, name, stage)
    batches = ours(row)
    next(batches)
    watch.lap()
    watch.spent.clear()
    count, start = 0, time.thread_time()
    while time.thread_time() - start < seconds:
        next(batches)
        count += row.batch_size
    watch.lap()
    spent = {stage: 1e3 * watch.spent[stage] / count for stage in STAGES}
    return {**spent, "stopwatch": sum(spent.values()) - plain}


def _cpu_ms(batches: Iterator[Any], row: Row, seconds: float) -> float:
    next(batches)
    count, start = 0, time.thread_time()
    while time.thread_time() - start < seconds:
        next(batches)
        count += row.batch_size
    return 1e3 * (time.thread_time() - start) / count


def _forget_pages(row: Row) -> None:
    for path in Path(row.corpus, "shards", row.encoding).iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def first_batch(row: Row) -> dict[str, float]:
    """Seconds by the wall's clock in a new process, none of the shards in the page cache."""
    _forget_pages(row)
    start = time.perf_counter()
    from ours import datamodule

    imported = time.perf_counter()
    data = datamodule(row)
    ready = time.perf_counter()
    batches = iter(data.train_dataloader())
    next(batches)
    first = time.perf_counter()
    next(batches)
    second = time.perf_counter()
    return {"imports": imported - start, "setup": ready - imported, "first": first - ready, "second": second - first}


def late(row: Row, repeats: int = 7) -> dict[str, list[float]]:
    """CPU-ms until the first batch, from the start of the stream and from a position late in it, in turn."""
    from ours import datamodule

    positions = {"start": 0, "late": LATE * row.batch_size}
    found: dict[str, list[float]] = {name: [] for name in positions}
    for _ in range(repeats + 1):
        for name, position in positions.items():
            data = datamodule(row, position)
            start = time.process_time()
            batch = next(iter(data.train_dataloader()))
            found[name].append(1e3 * (time.process_time() - start))
            assert min(batch.positions) == position
    return {name: took[1:] for name, took in found.items()}  # the first of all warms up


def memory(row: Row, num_batches: int = 100) -> dict[str, float]:
    """MB of one worker after some batches, and of the main process."""
    from multiprocessing import active_children

    from ours import ours

    batches = ours(replace(row, num_workers=2))
    for _ in range(num_batches):
        next(batches)
    (worker, *_), found = active_children(), {}
    for who, pid in {"worker": worker.pid, "main": os.getpid()}.items():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
        found[f"{who} resident"], found[f"{who} own"] = sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"]
        found[f"{who} anonymous"] = sizes["Anonymous"]
    return found


def look(name: str, row: Row) -> Any:
    """One look, in a process of its own."""
    command = [sys.executable, __file__, name, row.dumps()]
    output = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    return json.loads(output.stdout.splitlines()[-1])


def run(plain: dict[str, Row], rows: dict[str, Row]) -> dict[str, Any]:
    """All looks; those at memory and the first batch at the rows that are not resampled."""
    first, *_ = plain.values()
    cold = {f"{n} workers": [look("first_batch", replace(first, num_workers=n)) for _ in range(3)] for n in (0, 2)}
    return {
        "stages": {name: look("stages", row) for name, row in rows.items()},
        "cold": cold,
        "late": look("late", first),
        "memory": {name: look("memory", row) for name, row in plain.items() if row.encoding == "flac"},
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Row(**json.loads(sys.argv[2])))))
