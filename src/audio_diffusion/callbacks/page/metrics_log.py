"""The curves in metrics.jsonl, in bounded memory and without reading a row twice."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

Point = tuple[float, float]  # (step, value)
MOST_KEPT = 2048  # points of a curve; of more, neighbours are averaged


class Curve(Sequence[Point]):
    """The values of one metric by step. All are kept of a short curve, of a long one the means of neighbours.

    Attributes:
        least: step and value of the least value.
        last: step and value of the last step.
    """

    def __init__(self) -> None:
        self.least, self.last = (0, math.inf), (-1, math.nan)
        self._points: list[Point] = []
        self._part: list[Point] = []  # values that do not make a whole point yet
        self._size = 1  # number of values in a point

    def add(self, step: int, value: float) -> None:
        """Adds a value."""
        if value < self.least[1]:
            self.least = step, value
        if step >= self.last[0]:
            self.last = step, value
        self._part.append((step, value))
        if len(self._part) == self._size:
            self._points.append(mean(self._part))
            self._part = []
        if len(self._points) == MOST_KEPT:
            self._points = [mean(self._points[i : i + 2]) for i in range(0, MOST_KEPT, 2)]
            self._size *= 2

    @property
    def points(self) -> list[Point]:
        """Returns the points by step."""
        rest = [mean(self._part)] if self._part else []
        return sorted([*self._points, *rest], key=lambda point: point[0])

    def __len__(self) -> int:
        return len(self._points) + bool(self._part)

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> list[Point]: ...
    def __getitem__(self, index: int | slice) -> Point | list[Point]:
        return self.points[index]


def mean(points: Sequence[Point]) -> Point:
    """Returns the mean step and the mean value of some points."""
    return tuple(math.fsum(values) / len(points) for values in zip(*points, strict=True))  # type: ignore[return-value]


class MetricsLog:
    """A run's ``metrics.jsonl``.

    Each ``read`` parses only the rows that were added since the one before, so that a page that is written many times
    during a long run costs no more each time.

    Args:
        path: the file.

    Attributes:
        curves: by name of the metric.
    """

    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.curves: dict[str, Curve] = {}
        self._at, self._file = 0, (-1, -1)
        self._damaged = self._not_finite = 0

    def read(self) -> list[str]:
        """Reads the new rows; a file that was replaced or truncated is read from the beginning.

        Returns:
            Notes on rows that could not be read.
        """
        half_written = 0
        try:
            with open(self.path, "rb") as f:
                found = os.fstat(f.fileno())
                if self._file != (found.st_dev, found.st_ino) or found.st_size < self._at:
                    self._forget()
                    self._file = (found.st_dev, found.st_ino)
                f.seek(self._at)
                for line in f:
                    row = _row(line)
                    if row is None and not line.endswith(b"\n"):  # its writer may be at work
                        half_written = 1
                        break
                    self._at += len(line)
                    self._add(row, line)
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            return [f"{self.path.name} cannot be read: {error}"]
        return self._notes(half_written)

    def _add(self, row: dict[str, Any] | None, line: bytes) -> None:
        if row is None:
            self._damaged += bool(line.strip())
            return
        step = row.pop("step")
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.curves.setdefault(name, Curve()).add(step, float(value))
            else:
                self._not_finite += 1

    def _notes(self, half_written: int) -> list[str]:
        damaged, notes = self._damaged + half_written, []
        if damaged:
            notes.append(f"{self.path.name}: {damaged} damaged or half-written line{'s' * (damaged > 1)} left out")
        if count := self._not_finite:
            notes.append(f"{self.path.name}: {count} value{'s' * (count > 1)} not finite, not drawn")
        return notes


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of the file; None if it is damaged."""
    try:
        row = json.loads(line.decode(errors="replace"))
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
