"""Rewinds the local log of a resumed run."""

import contextlib
import json
from pathlib import Path

from audio_diffusion.checkpoints.files import publish, stage


def rewind(log: Path, step: int) -> int:
    """Removes the rows of steps after ``step`` from a log of json lines, as these steps are trained and logged again.

    An incomplete line, left by a killed run, is removed too. Returns the number of removed rows.
    """
    if not log.exists():
        return 0
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_until(line, step)]
    if len(kept) < len(lines):
        stage(log, lambda file: file.write(b"".join(kept)))
        publish(log)
    return len(lines) - len(kept)


def last_step(log: Path) -> int:
    """Returns the largest step in a log of json lines; -1 if it has no rows."""
    found = -1
    for line in log.read_bytes().splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = max(found, int(json.loads(line)["step"]))
    return found


def _is_until(line: bytes, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
