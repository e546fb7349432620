"""What is measured, and how: each way of loading sits in a process of its own and is asked, in turn with the others,
for so many seconds of batches. Needs the standard library alone: the peers have an interpreter of their own."""

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

AHEAD = 4  # batches that a worker may have made before it is asked


@dataclass(frozen=True)
class Row:
    """Crops of what, and how long."""

    corpus: str  # folder of one of corpora.py's
    encoding: str  # flac or wav
    rate_in: int  # Hz, of the files
    sample_rate: int  # Hz, of the crops
    channels: int
    num_samples: int
    batch_size: int
    num_workers: int = 0

    @property
    def seconds(self) -> float:
        """Of audio in a batch."""
        return self.batch_size * self.num_samples / self.sample_rate

    def dumps(self) -> str:
        return json.dumps(asdict(self))


Way = Callable[[Row], Iterator[Any]]  # endless batches; what a batch is, is the way's own matter


def cpu_seconds() -> tuple[float, float]:
    """User and system, of this process with all its threads, and of the workers it has started (Linux)."""
    workers = 0.0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        workers += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.process_time(), workers


def measure(batches: Iterator[Any], row: Row, seconds: float) -> dict[str, float]:
    """Loads for so many seconds, of the CPU's time in-process, of the wall's with workers: audio and time spent."""
    for _ in range(AHEAD * row.num_workers):  # made before the clock runs
        next(batches)
    clock = time.perf_counter if row.num_workers else time.process_time
    count, wall, (main, workers), start = 0, time.perf_counter(), cpu_seconds(), clock()
    while clock() - start < seconds:
        batch = next(batches)  # noqa: F841  the one before is held until now, as a training step holds it
        count += 1
    wall, now = time.perf_counter() - wall, cpu_seconds()
    return {"audio": count * row.seconds, "wall": wall, "main": now[0] - main, "workers": now[1] - workers}


def serve(ways: dict[str, Way]) -> None:
    """Answers lines of json with lines of json: ``{"row": .., "way": ..}`` begins another row, ``{"seconds": ..}``
    measures. A way that fails says why."""
    answers, sys.stdout = sys.stdout, sys.stderr  # peers print
    batches: Iterator[Any] = iter(())
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "row" in order:
                batches = iter(())  # ends the last row's workers
                row = Row(**order["row"])
                batches = ways[order["way"]](row)
                next(batches)
                answer: dict[str, Any] = {"ready": True}
            else:
                answer = measure(batches, row, order["seconds"])
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
