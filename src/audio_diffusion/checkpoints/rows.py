"""The local log of a run that is resumed."""

import json
from pathlib import Path

from audio_diffusion.checkpoints.files import publish, stage


def rewind(log: Path, step: int) -> int:
    """Cuts the rows of steps after ``step`` out of a log of json lines: they are trained, and logged, again.

    A line that a kill has cut off goes too. Returns how many rows were cut.
    """
    if not log.exists():
        return 0
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_until(line, step)]
    if len(kept) < len(lines):
        stage(log, lambda file: file.write(b"".join(kept)))
        publish(log)
    return len(lines) - len(kept)


def _is_until(line: bytes, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
