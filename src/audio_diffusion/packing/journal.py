"""Journal of a packing run on disk, from which a killed run resumes."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from audio_diffusion.checkpoints.exclusive import lock_file
from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.data.shards.find import MANIFEST
from audio_diffusion.data.shards.index import write_atomic
from audio_diffusion.packing.shard_writer import WORK
from audio_diffusion.packing.sources import Source

Plan = list[AudioInfo | str]  # for each source, its properties or the reason why it is refused

PLAN = "plan.jsonl"  # exists while a run is unfinished
_RUN, _JOURNAL, _LOCK = "run.json", "journal.jsonl", "lock"


def fingerprint(sources: Iterable[Source]) -> str:
    """Returns a hash of the sources: their names and metadata, and the size and time of local files."""
    digest = hashlib.sha256()
    for source in sources:
        stat = None
        if isinstance(source.path, Path):
            try:
                found = source.path.stat()
                stat = (found.st_size, found.st_mtime_ns)
            except OSError:
                pass
        digest.update(json.dumps([source.name, source.fields, source.problem, stat]).encode())
    return digest.hexdigest()


class Journal:
    """A folder that exists in the output while a run is unfinished: its options, its plan, and a line for each shard.

    Args:
        output: folder of the shards.
        sources: files to pack, in order.
        options: options that determine the output; a run with other options is not continued.

    Raises:
        ValueError: if the output holds finished shards, or an unfinished run with other options or other input.
    """

    def __init__(self, output: Path, sources: list[Source], options: dict[str, Any]):
        self._output, self._folder, self._options = output, output / WORK, options
        self._input = fingerprint(sources)
        self._lock: IO[str] | None = None
        self.entries: list[dict[str, Any]] = []
        self.plan: Plan | None = None
        self.copies: list[list[int]] = []  # groups of indices into the list of sources
        if (self._folder / PLAN).exists():
            self._resume()
        else:
            self._check_empty()

    def _resume(self) -> None:
        """Reads the journal of an unfinished run, and checks that its options and input are the same."""
        self._take_lock()
        run = json.loads((self._folder / _RUN).read_text(encoding="utf-8"))
        begun = f"output: {str(self._output)!r} contains an unfinished run"
        advice = "Continue with those, or remove the folder to start again"
        differing = [name for name, value in self._options.items() if run["options"].get(name) != value]
        if differing:
            before = ", ".join(f"{name}={run['options'].get(name)}" for name in differing)
            now = ", ".join(f"{name}={self._options[name]}" for name in differing)
            raise ValueError(f"{begun} with {before}, not with {now}. {advice}")
        if run["input"] != self._input:
            raise ValueError(f"{begun} with other input: files were added, removed or changed since. {advice}")
        self.copies = run.get("copies", [])
        self.plan = [
            line if isinstance(line, str) else AudioInfo(*line)
            for line in map(json.loads, (self._folder / PLAN).read_text(encoding="utf-8").splitlines())
        ]
        lines = (self._folder / _JOURNAL).read_text(encoding="utf-8") if (self._folder / _JOURNAL).exists() else ""
        whole = lines[: lines.rfind("\n") + 1]  # the last line may have been cut off
        self.entries = [json.loads(line) for line in whole.splitlines()]
        for shard in (entry["shard"] for entry in self.entries):
            path = self._output / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise ValueError(
                    f"{begun}, whose finished shard {shard['name']} is missing or has changed. Remove the folder"
                )
        write_atomic(self._folder / _JOURNAL, whole)
        for part in self._output.glob(".*.part"):  # left by a process that was killed while it wrote an index
            part.unlink()

    def begin(self, plan: Plan, copies: list[list[int]] | None = None) -> None:
        """Writes the plan of the run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._check_empty()
        run = {"input": self._input, "options": self._options, "copies": copies or []}
        write_atomic(self._folder / _RUN, json.dumps(run))
        lines = [item if isinstance(item, str) else list(vars(item).values()) for item in plan]
        write_atomic(self._folder / PLAN, "".join(json.dumps(line) + "\n" for line in lines))
        self.plan, self.copies = plan, copies or []

    def append(self, entry: dict[str, Any]) -> None:
        """Adds the line of a finished shard."""
        with open(self._folder / _JOURNAL, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Removes the folder."""
        (self._folder / PLAN).unlink()
        if sys.platform == "win32" and self._lock is not None:  # Windows cannot remove open files
            self._lock.close()
        shutil.rmtree(self._folder)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _check_empty(self) -> None:
        if list(self._output.glob("*.tar")) or (self._output / MANIFEST).exists():
            raise ValueError(
                f"output: {str(self._output)!r} already holds shards; remove them or choose another folder"
            )

    def _take_lock(self) -> None:
        self._lock = open(self._folder / _LOCK, "w", encoding="utf-8")  # noqa: SIM115
        try:
            lock_file(self._lock, wait=False)
        except BlockingIOError:
            raise ValueError(f"output: another run is writing to {str(self._output)!r}") from None
