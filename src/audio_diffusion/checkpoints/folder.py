"""The checkpoints of a run: ``checkpoints/step_<step>.ckpt`` with a manifest ``step_<step>.json`` beside each.

They are ordered by step, never by time. All functions take the folder ``checkpoints``; those that change anything are
for the run that owns it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from audio_diffusion.checkpoints.files import FileRecord, HashingFile, part_of, publish, remove, stage, sync_folder
from audio_diffusion.checkpoints.manifest import Manifest


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint or its manifest; -1 where there is none."""
    match = re.fullmatch(r"step_(\d+)\.(ckpt|json)", path.name)
    return int(match[1]) if match else -1


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step: a file, or a folder of shards."""
    return folder / f"step_{step:08d}.ckpt"


def manifest_of(checkpoint: Path) -> Path:
    """Where a checkpoint's manifest is."""
    return checkpoint.with_suffix(".json")


def all_in(folder: Path) -> list[Path]:
    """The checkpoints there are, good or not, by step; also those of which only the manifest is left."""
    steps = {step_of(path) for path in folder.glob("step_*")}
    return [path_of(folder, step) for step in sorted(steps - {-1})]


def problem_of(checkpoint: Path) -> str | None:
    """Why a checkpoint is not verified; None where its manifest is there and its files hold what that says."""
    try:
        manifest = Manifest.read(manifest_of(checkpoint))
    except FileNotFoundError:
        return f"{checkpoint.name}: no manifest beside it (an unfinished write, or one of an older version)"
    except (OSError, ValueError) as error:
        return f"{checkpoint.name}: {error}"
    return _name_problem(checkpoint, manifest) or manifest.problem(checkpoint.parent)


def _name_problem(checkpoint: Path, manifest: Manifest) -> str | None:
    """What is wrong where a checkpoint and its manifest were given another name: a run resumes by the names."""
    of_another = [name for name in manifest.files if PurePosixPath(name).parts[0] != checkpoint.name]
    if of_another:
        original = PurePosixPath(of_another[0]).parts[0]
        return f"{checkpoint.name}: its manifest is that of {original}; it was renamed: give it that name again"
    if step_of(checkpoint) not in (-1, manifest.step):
        return f"{checkpoint.name}: its manifest says step {manifest.step}; it was renamed"
    return None


@dataclass(frozen=True)
class Choice:
    """The newest verified checkpoint, and why each newer one was passed over."""

    path: Path | None
    problems: list[str]

    def lines(self) -> list[str]:
        """One for each that was passed over, for the log."""
        if self.path is None:
            return self.problems
        return [f"{problem}; falling back to {self.path.name}" for problem in self.problems]


def newest_verified(folder: Path) -> Choice:
    """Walks from the newest step backwards to the first checkpoint that is verified."""
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

    Both are on the disk before the first of them gets its name: a kill at any moment leaves what was there before, or
    what ``recover`` completes.

    Args:
        checkpoint: the path to write.
        fill: ``fill(file)`` writes the content.
        describe: the manifest, for the records of the files.

    Raises:
        OSError: if it cannot be written, or reads back as something else.
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
    """Completes or removes what a writer that was killed has left; returns what was done, for the log."""
    done = []
    for part in sorted(folder.glob(".step_*.json.part")):
        manifest = folder / part.name.removeprefix(".").removesuffix(".part")
        checkpoint = manifest.with_suffix(".ckpt")
        # the checkpoint has its name already, so only the manifest's was left to give
        if not part_of(checkpoint).exists() and _is_manifest_of(part, checkpoint):
            publish(manifest)
            done.append(f"{checkpoint.name}: completed, as its writer was killed at the last moment")
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
    """Which checkpoints stay.

    Args:
        newest: so many of the newest.
        every_n_steps: and all of steps that are a multiple of this; None for no more.
    """

    newest: int = 2
    every_n_steps: int | None = None

    def prune(self, folder: Path, step: int) -> None:
        """Removes what need not stay once the checkpoint of ``step`` is written and verified.

        Newer ones (of a life that went further and was found broken) are left alone. The manifest goes first: what a
        kill leaves then is not taken for a checkpoint.
        """
        older = [checkpoint for checkpoint in all_in(folder) if step_of(checkpoint) <= step]
        good = [checkpoint for checkpoint in older if manifest_of(checkpoint).exists()]
        stay = set(good[-self.newest :])
        if self.every_n_steps is not None:
            stay |= {checkpoint for checkpoint in good if step_of(checkpoint) % self.every_n_steps == 0}
        if len(stay) < self.newest:
            return  # one without a manifest may be all there is besides
        for checkpoint in older:
            if checkpoint not in stay:
                manifest_of(checkpoint).unlink(missing_ok=True)
                sync_folder(folder)
                remove(checkpoint)
