"""Finds and reads the files that sample.py edits."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from audio_diffusion.cli.samples import Input
from audio_diffusion.data.audio.reading import UnusableAudio
from audio_diffusion.data.audio.recording import probe, read_file
from audio_diffusion.data.wording import counted
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import ConfigError

_NAMED = 5  # number of ignored files of a folder that are named


def find_files(given: str | Sequence[str], extensions: Sequence[str]) -> list[Path]:
    """Returns the given files; for a folder, the files in it with one of these extensions, and others with audio."""
    found: list[Path] = []
    for name in [given] if isinstance(given, str) else given:
        path = Path(name)
        found += _inside(path, extensions) if path.is_dir() else [path]
    if not found:
        raise ConfigError("input: expected a file, a list of them, or a folder, got none")
    return found


def _inside(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """Returns the audio files of a folder. Other files are reported; hidden files are ignored.

    Raises:
        ConfigError: if there is no audio file.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    inside = [p for p in files if p.suffix[1:].lower() in extensions or _is_audio(p)]
    others = [p.name for p in files if p not in inside]
    if not inside:
        such = f", only {_some(others)}" if others else ""
        raise ConfigError(f"input: the folder {str(folder)!r} contains none of {', '.join(extensions)}{such}")
    if others:
        warnings.warn(f"input: {str(folder)!r}: left out, because they contain no audio: {_some(others)}", stacklevel=2)
    return inside


def _some(names: Sequence[str]) -> str:
    """Formats the first few names and the number of the others."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _is_audio(path: Path) -> bool:
    """Whether a file without an extension of audio contains audio."""
    try:
        probe(path, exact=False)
    except (OSError, ValueError, UnusableAudio):
        return False
    return True


def read_clip(model: Model, path: Path) -> Input:
    """Reads an audio file to edit, converted to the model's sample rate and channels.

    Raises:
        ConfigError: if it cannot be read or converted.
    """
    with usable(path):
        info = probe(path)
        clip = read_file(path, model.sample_rate, model.channels)
    changes = []
    if info.sample_rate != model.sample_rate:
        changes.append(f"resampled from {info.sample_rate} to {model.sample_rate} Hz")
    if info.channels != model.channels:
        changes.append(f"converted from {counted(info.channels, 'channel')} to {model.channels}")
    return Input(path, info, clip, ", ".join(changes))


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Names the file in errors that are raised while it is read.

    Raises:
        ConfigError: instead of errors of the system, of decoding, and ValueError.
    """
    try:
        yield
    except (OSError, ValueError, UnusableAudio) as error:
        raise ConfigError(f"input: {str(path)!r} cannot be used: {error}") from error
