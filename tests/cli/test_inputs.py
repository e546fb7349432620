"""What files a folder given as input= stands for."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.cli.inputs import find_files
from audio_diffusion.inference.targets import ConfigError


def test_of_a_folder_all_audio_is_taken_and_the_rest_is_named(
    tmp_path: Path, encode: Callable[..., bytes], noise: Callable[..., Any]
) -> None:
    wav = encode(0.1 * noise(1000), 16_000)
    for name in ("b.WAV", "a.wav", "c.wave", "d", "._a.wav", ".hidden.wav"):
        (tmp_path / name).write_bytes(wav)
    (tmp_path / "e.wav").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [path.name for path in find_files(str(tmp_path), ("wav",))] == ["a.wav", "b.WAV", "c.wave", "d"]
    for number in range(7):
        (tmp_path / f"notes{number}.txt").write_text("words")
    with pytest.warns(
        UserWarning, match=r"left out, because they contain no audio: notes0.txt, .*, notes4.txt and 2 more"
    ):
        assert (
            len(find_files([str(tmp_path), str(tmp_path / "notes0.txt")], ("wav",))) == 5
        )  # named files are not filtered


def test_a_folder_without_audio_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(ConfigError, match=r"contains none of wav, flac, only notes.txt"):
        find_files(str(tmp_path), ("wav", "flac"))
