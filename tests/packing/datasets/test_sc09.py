"""Speech Commands as it is distributed -> digits, labels and the official split, by the real packer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audio_diffusion.packing.datasets import sc09
from audio_diffusion.packing.manifests import scan_manifest
from audio_diffusion.packing.pack import pack


@pytest.fixture
def commands(tmp_path: Path, encode: Callable[..., bytes], noise: Callable) -> Path:
    """The layout of speech_commands_v0.02: words, speakers, lists, and what is no digit."""
    folder = tmp_path / "speech_commands_v0.02"
    clip = encode(noise(160), 16000)
    for word in (*sc09.DIGITS, "yes", "_background_noise_"):
        (folder / word).mkdir(parents=True)
        for speaker in ("004ae714", "00f0204f", "0135f3f2"):
            (folder / word / f"{speaker}_nohash_0.wav").write_bytes(clip)
    words = (*sc09.DIGITS, "yes")
    (folder / "validation_list.txt").write_text("".join(f"{word}/00f0204f_nohash_0.wav\n" for word in words))
    (folder / "testing_list.txt").write_text("".join(f"{word}/0135f3f2_nohash_0.wav\n" for word in words))
    (folder / "LICENSE").write_text("CC BY")
    return folder


def test_digits_keep_their_labels_and_their_official_split(commands: Path, tmp_path: Path) -> None:
    assert sc09.write_manifest(commands) == {"train": 10, "val": 10, "test": 10}
    sources = scan_manifest(commands, commands / sc09.MANIFEST)
    report = pack(sources, tmp_path / "shards", num_workers=1)
    assert report.clips == {"train": 10, "val": 10, "test": 10}
    assert set(report.classes) == set(sc09.DIGITS)
    assert {s.name.rpartition("/")[2].partition("_")[0] for s in sources if s.fields["split"] == "val"} == {"00f0204f"}
    assert all(s.fields["label"] == s.name.partition("/")[0] for s in sources)


def test_the_command_says_what_to_do_next(commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sc09.main([str(commands)])
    said = capsys.readouterr().out
    assert "train 10, val 10, test 10 clips" in said
    assert f"make_shards.py input={commands} manifest={commands / 'sc09.csv'} output=data/sc09" in said


def test_what_is_not_speech_commands_is_refused(commands: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"error: folder: expected Speech Commands, .* has no validation_list\.txt, te"
    ):
        sc09.main([str(tmp_path)])
    (commands / "three" / "0135f3f2_nohash_0.wav").unlink()
    with pytest.raises(ValueError, match=r"1 clips in the official lists do not exist, such as three/0135"):
        sc09.write_manifest(commands)
    with pytest.raises(SystemExit, match="usage"):
        sc09.main([])
