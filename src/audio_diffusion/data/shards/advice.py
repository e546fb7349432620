"""Advice for users if no shards are found: they may have other names, or the audio is not packed yet."""

import shlex
from collections.abc import Sequence
from glob import escape
from pathlib import Path

from audio_diffusion.data.audio.reading import PACKED
from audio_diffusion.data.remote import is_remote

MAKE_THEM = "Make shards with: python make_shards.py input=FOLDER output=SHARDS"


def is_sound(name: str) -> bool:
    """Whether a file is audio, by the extension of its name."""
    return name.rpartition(".")[2].lower() in PACKED


def pack(place: str) -> str:
    """Returns instructions to pack a file or a folder of audio, and to train on it."""
    command = f"python make_shards.py {shlex.quote(f'input={place}')} output=data/mine"
    return f"Pack it first: {command}, then data.train=data/mine"


def instead_of_shards(folder: str, names: Sequence[str]) -> str:
    """Returns advice for a folder without ``train-*.tar``, based on the names of its entries."""
    shards = [name for name in names if name.endswith(".tar") and not name.startswith("val-")]
    if shards:
        others = f"{len(shards)} other {'shard' if len(shards) == 1 else 'shards'}, such as {shards[0]!r}"
        pattern = f"{folder if is_remote(folder) else escape(folder)}/*.tar"
        return f"It contains {others}: use {shlex.quote(f'data.train={pattern}')}"
    if any(_holds_sound(folder, name) for name in names):
        return f"It contains audio. {pack(folder)}"
    return MAKE_THEM


def _holds_sound(folder: str, name: str) -> bool:
    """Whether an entry of a folder is audio, or a folder that contains audio."""
    path = Path(folder, name)
    try:
        inside = [entry.name for entry in path.iterdir()] if path.is_dir() else [name]
    except OSError:
        return False
    return any(map(is_sound, inside))
