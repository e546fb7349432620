"""Where results go: a folder of audio, with a json and a picture of its name beside it."""

from itertools import count
from pathlib import Path

from audio_diffusion.inference.exporting import HUB
from audio_diffusion.inference.generator import Generator


def beside(folder: Path, ending: str) -> Path:
    """The file beside a folder that has its name and an ending, such as ``.json``."""
    return folder.parent / f"{folder.name}{ending}"


def default_folder(model: Generator, ckpt: str, task: str) -> Path:
    """Where results of a task go if the user names no folder.

    Of a run it is a folder in the run's; of any other file or folder it lies beside that and begins with its name, so
    that two models in one folder do not share it; of a model of the hub it lies in the current folder.
    """
    what = "generated" if task == "generate" else task
    if ckpt.startswith(HUB):
        return Path(f"{ckpt.removeprefix(HUB).replace('/', '_')}_{what}")
    source = model.source
    if source.parent.name == "checkpoints":
        return source.parents[1] / what
    name = source.resolve().name if source.is_dir() else source.stem
    return (source.resolve().parent if source.name in ("", ".", "..") else source.parent) / f"{name}_{what}"


def claim(wanted: Path) -> Path:
    """Makes a new folder of this name, or of the first name_2, name_3 .. of which there is neither folder, json nor
    picture; returns it. Two programs at once get two folders."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else beside(wanted, f"_{number}")
        if any(beside(folder, ending).exists() for ending in (".json", ".png")):
            continue
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def note_of(folder: Path) -> str | None:
    """What to say before results are written to a folder that the user named; None where it holds nothing."""
    there = sum(1 for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0
    if not there and not beside(folder, ".json").exists():
        return None
    return (
        f"{folder} holds {there} file{'s' * (there != 1)} already: those of equal names are replaced, the others stay; "
        f"{beside(folder, '.json')} and the picture are replaced too"
    )
