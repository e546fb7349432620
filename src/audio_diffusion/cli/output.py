"""Chooses where results are written: a folder of audio, with a json, a picture and a page of its name next to it."""

import tempfile
from itertools import count
from pathlib import Path

from audio_diffusion.checkpoints.folder import WEIGHTS
from audio_diffusion.cli.config import ConfigError
from audio_diffusion.inference.exporting import HUB
from audio_diffusion.inference.model import Model


def beside(folder: Path, ending: str) -> Path:
    """Returns the path next to a folder that consists of the folder's name and an ending, such as ``.json``."""
    return folder.parent / f"{folder.name}{ending}"


def default_folder(model: Model, ckpt: str, task: str) -> Path:
    """Returns the folder for results of a task if the user names none.

    For a run it is inside the run's folder. For any other file or folder it is next to it and begins with its name, so
    that two models in one folder do not share it. For a model of the hub it is in the current folder.
    """
    what = "generated" if task == "generate" else task
    if ckpt.startswith(HUB):
        return Path(f"{ckpt.removeprefix(HUB).replace('/', '_')}_{what}")
    source = model.source
    if source.parent.name in WEIGHTS:
        return source.parents[1] / what
    name = source.resolve().name if source.is_dir() else source.stem
    return (source.resolve().parent if source.name in ("", ".", "..") else source.parent) / f"{name}_{what}"


def claim(wanted: Path) -> Path:
    """Creates and returns a new folder of this name, or of the first free one of name_2, name_3 ..

    A name is free if no folder, json, picture or page has it. Two programs at the same time get different folders.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else beside(wanted, f"_{number}")
        if any(beside(folder, ending).exists() for ending in (".json", ".png", ".html")):
            continue
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def note_of(folder: Path) -> str | None:
    """Returns a note to print before results are written to an existing folder; None if it is empty."""
    there = sum(1 for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0
    if not there and not beside(folder, ".json").exists():
        return None
    return (
        f"{folder} already has {there} file{'s' * (there != 1)}: those with equal names are replaced, others are kept; "
        f"{beside(folder, '.json')}, the picture and the page are replaced too"
    )


def writable(named: str | None, default: Path) -> Path:
    """Creates the folder of the results and writes a test file to it, so that a long measurement is not lost.

    Args:
        named: the folder that the user named; None for ``default``.
        default: the folder otherwise.

    Raises:
        ConfigError: if it cannot be written to.
    """
    folder = Path(named or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"output: {folder} cannot be written to: {error.strerror}. Choose another folder: output=FOLDER"
        ) from error
    return folder
