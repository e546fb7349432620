"""The checkpoints of a run: ``checkpoints/step_<step>.ckpt`` with a manifest ``step_<step>.json`` beside each.

They are ordered by step, never by time. All functions take the folder ``checkpoints``; only the run that owns it may
call those that change it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from audio_diffusion.checkpoints.files import FileRecord, HashingFile, part_of, publish, remove, stage, sync_folder
from audio_diffusion.checkpoints.manifest import Manifest

WEIGHTS = ("checkpoints", "best", "ema", "best_average")  # folders of a run that hold files of weights


def step_of(path: Path) -> int:
    """Returns the step in the name of a checkpoint or manifest; -1 if the name has none."""
    match = re.fullmatch(r"step_(\d+)\.(ckpt|json)", path.name)
    return int(match[1]) if match else -1


def path_of(folder: Path, step: int) -> Path:
    """Returns the path of a step's checkpoint: a file, or a folder of shards."""
    return folder / f"step_{step:08d}.ckpt"


def manifest_of(checkpoint: Path) -> Path:
    """Returns the path of a checkpoint's manifest."""
    return checkpoint.with_suffix(".json")


def all_in(folder: Path) -> list[Path]:
    """Returns all checkpoints by step, verified or not, including those of which only the manifest is left."""
    steps = {step_of(path) for path in folder.glob("step_*")}
    return [path_of(folder, step) for step in sorted(steps - {-1})]


def problem_of(checkpoint: Path) -> str | None:
    """Verifies a checkpoint; returns None if its files match its manifest, else a description of the problem."""
    try:
        manifest = Manifest.read(manifest_of(checkpoint))
    except FileNotFoundError:
        return f"{checkpoint.name}: no manifest beside it (an unfinished write, or one of an older version)"
    except (OSError, ValueError) as error:
        return f"{checkpoint.name}: {error}"
    return _name_problem(checkpoint, manifest) or manifest.problem(checkpoint.parent)


def _name_problem(checkpoint: Path, manifest: Manifest) -> str | None:
    """Returns a problem if a checkpoint and its manifest were renamed, because the names determine the step."""
    of_another = [name for name in manifest.files if PurePosixPath(name).parts[0] != checkpoint.name]
    if of_another:
        original = PurePosixPath(of_another[0]).parts[0]
        return f"{checkpoint.name}: its manifest belongs to {original}; it was renamed: restore that name"
    if step_of(checkpoint) not in (-1, manifest.step):
        return f"{checkpoint.name}: its manifest says step {manifest.step}; it was renamed"
    return None


@dataclass(frozen=True)
class Choice:
    """The newest verified checkpoint, and the reasons why newer ones were skipped."""

    path: Path | None
    problems: list[str]

    def lines(self) -> list[str]:
        """Returns a log line for each checkpoint that was skipped."""
        if self.path is None:
            return self.problems
        return [f"{problem}; falling back to {self.path.name}" for problem in self.problems]


def newest_verified(folder: Path) -> Choice:
    """Finds the newest verified checkpoint, searching from the newest step backwards."""
    problems: list[str] = []
    for checkpoint in reversed(all_in(folder)):
        problem = problem_of(checkpoint)
        if problem is None:
            return Choice(checkpoint, problems)
        problems.append(problem)
    return Choice(None, problems)


def write(
    checkpoint: Path, fill: Callable[[HashingFile], Any], describe: Callable[[dict[str, FileRecord]], Manifest]
) -> Manifest:
    """Writes a checkpoint of one file and its manifest, and reads it back.

    Both are synced to disk before the first of them is renamed. If the process is killed at any moment, the folder is
    unchanged or can be completed by ``recover``.

    Args:
        checkpoint: the path to write.
        fill: ``fill(file)`` writes the content.
        describe: creates the manifest from the records of the files.

    Raises:
        OSError: if it cannot be written, or its content differs when read back.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    record = stage(checkpoint, fill)
    try:
        manifest = describe({checkpoint.name: record})
        stage(manifest_of(checkpoint), lambda file: file.write(manifest.to_json()))
        publish(checkpoint, manifest_of(checkpoint))
    except BaseException:
        part_of(checkpoint).unlink(missing_ok=True)
        raise
    if problem := problem_of(checkpoint):
        raise OSError(f"read back after writing: {problem}")
    return manifest


def recover(folder: Path) -> list[str]:
    """Completes or removes the files left by a killed writer; returns log lines."""
    done = []
    for part in sorted(folder.glob(".step_*.json.part")):
        manifest = folder / part.name.removeprefix(".").removesuffix(".part")
        checkpoint = manifest.with_suffix(".ckpt")
        # the checkpoint is renamed already, so only the manifest remains to be renamed
        if not part_of(checkpoint).exists() and _is_manifest_of(part, checkpoint):
            publish(manifest)
            done.append(f"{checkpoint.name}: completed, because its writer was killed at the last moment")
    for part in sorted(folder.glob(".step_*.part")):
        remove(part)
        done.append(f"{part.name}: removed, left by a writer that was killed")
    return done


def _is_manifest_of(part: Path, checkpoint: Path) -> bool:
    try:
        return Manifest.read(part).sizes_problem(checkpoint.parent) is None
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Keep:
    """Rule for the checkpoints that are kept.

    Args:
        newest: number of newest checkpoints to keep.
        every_n_steps: also keep all checkpoints whose step is a multiple of this; None for no others.
    """

    newest: int = 2
    every_n_steps: int | None = None

    def prune(self, folder: Path, step: int) -> None:
        """Removes checkpoints that need not be kept, once the checkpoint of ``step`` is written and verified.

        Newer ones (damaged ones of a start that got further) are not removed. Manifests are removed first, so that the
        remains after a kill do not count as a verified checkpoint.
        """
        older = [checkpoint for checkpoint in all_in(folder) if step_of(checkpoint) <= step]
        good = [checkpoint for checkpoint in older if manifest_of(checkpoint).exists()]
        stay = set(good[-self.newest :])
        if self.every_n_steps is not None:
            stay |= {checkpoint for checkpoint in good if step_of(checkpoint) % self.every_n_steps == 0}
        if len(stay) < self.newest:
            return  # a checkpoint without a manifest may be the only other one
        for checkpoint in older:
            if checkpoint not in stay:
                manifest_of(checkpoint).unlink(missing_ok=True)
                sync_folder(folder)
                remove(checkpoint)
