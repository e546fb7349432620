"""Copies of a file stay in one split, and are named; data without copies are divided as ever."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.packing import copies
from audio_diffusion.packing.copies import describe, find_copies
from audio_diffusion.packing.holdout import hold_out
from audio_diffusion.packing.pack import pack
from audio_diffusion.packing.sources import Source, scan_folder, scan_url, split_of

ClipsOf = Callable[[Path], dict[str, tuple[str, bytes, dict[str, Any]]]]


def test_copies_are_packed_into_one_split_and_said(folder: Path, tmp_path: Path, clips_of: ClipsOf) -> None:
    before = pack(scan_folder(folder, True), tmp_path / "before", val_fraction=0.3)
    alone = {name: split for name, (split, _, _) in clips_of(tmp_path / "before").items()}
    assert not any("cop" in note for note in before.notes)
    for i in range(10):  # named so that they come behind
        shutil.copy(folder / "a" / "1.wav", folder / "b" / f"copy{i}.wav")
    (folder / "b" / "link.wav").symlink_to(folder / "b" / "0.wav")
    report = pack(scan_folder(folder, True), tmp_path / "out", val_fraction=0.3)
    clips = clips_of(tmp_path / "out")
    assert {name: clips[name][0] for name in alone} == alone  # where there are no copies, all is as it was
    assert {clips[f"b/copy{i}.wav"][0] for i in range(10)} == {clips["a/1.wav"][0]}
    assert clips["b/link.wav"][0] == clips["b/0.wav"][0]
    assert "11 files are copies of others: kept together in one split" in report.notes


def test_of_files_of_one_size_only_the_same_bytes_are_copies(
    tmp_path: Path, folder: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (folder / "a" / "1.wav").read_bytes() * 400
    plan: list[AudioInfo | str] = [AudioInfo(100, 16_000, 1, "WAV/PCM_16")] * 5
    other = bytearray(data)
    other[0] ^= 1  # differs outside the middle
    middle = bytearray(data)
    middle[len(data) // 2] ^= 1
    (tmp_path / "bytes").mkdir()
    sources = []
    for name, content in {"d": data, "b": bytes(other), "c": bytes(middle), "a": data, "e": data[:-1]}.items():
        (tmp_path / "bytes" / f"{name}.wav").write_bytes(content)
        sources.append(Source(tmp_path / "bytes" / f"{name}.wav", f"{name}.wav"))
    assert find_copies(sources, plan, None, 1) == [[3, 0]]  # the first name comes first
    assert find_copies(sources, [*plan[:3], "refused", plan[4]], None, 1) == []
    url = serve(tmp_path / "bytes")
    remote = scan_url(url, False, RemoteStore(None))
    found = find_copies(remote, plan, RemoteStore(None), 1)
    assert [[remote[i].name for i in group] for group in found] == [["a.wav", "d.wav"]]
    # files of sizes of their own are not read at all
    monkeypatch.setattr(copies, "_sampled", None)
    sources = [Source(tmp_path / "bytes" / f"{name}.wav", name) for name in ("a", "e")]
    assert find_copies(sources, plan[:2], None, 1) == []


def test_a_file_that_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    sources = [Source(tmp_path / f"{i}.wav", f"{i}.wav") for i in range(2)]
    assert find_copies(sources, [AudioInfo(1, 8000, 1, "WAV/PCM_16")] * 2, None, 1) == []


def divided(sources: list[Source], groups: list[list[int]], fraction: float) -> list[str]:
    return hold_out(sources, [AudioInfo(16_000, 16_000, 1, "WAV/PCM_16")] * len(sources), fraction, groups).splits


def test_the_first_name_decides_and_given_splits_stay() -> None:
    sources = [Source(Path(f"{i}"), f"{i}.wav") for i in range(200)]
    plain = [split_of(source, 0.3) for source in sources]
    assert divided(sources, [], 0.3) == plain
    train, val = plain.index("train"), plain.index("val")
    for first, other in ((train, val), (val, train)):
        expected = list(plain)
        expected[other] = plain[first]
        assert divided(sources, [[first, other]], 0.3) == expected
    given = Source(Path("x"), "x.wav", {"split": "test"})
    assert divided([*sources, given], [[train, val, 200]], 0.3)[train] == "test"  # with a copy whose split is given
    apart = [*sources, given, Source(Path("y"), "y.wav", {"split": "train"})]
    splits = divided(apart, [[200, 201]], 0.3)
    assert splits[200:] == ["test", "train"]
    assert describe([[200, 201]], apart, splits) == [
        "warning: 1 file is a copy of another, and the given splits divide copies of 1 file, such as 'x.wav' (test) "
        "and 'y.wav' (train)"
    ]


def test_of_few_files_one_is_held_out_with_its_copies() -> None:
    sources = [Source(Path(f"{i}"), f"{i}.wav") for i in range(5)]
    plan: list[AudioInfo | str] = [AudioInfo(16_000 * s, 16_000, 1, "WAV/PCM_16") for s in (9, 1, 9, 1, 9)]
    held = hold_out(sources, plan, 1e-9, [[1, 3]])
    assert held.splits == ["train", "val", "train", "val", "train"]
    assert held.note in [f"held out because there are few files: '{i}.wav' and its copies" for i in (1, 3)]
    # copies of one recording are as one: its end is held out, of each the same
    held = hold_out(sources[:3], plan[:3], 1e-9, [[0, 1, 2]])
    assert (held.splits, held.stretches) == (["train"] * 3, {"0.wav", "1.wav", "2.wav"})


def test_a_run_that_goes_on_keeps_what_it_has_found(folder: Path, tmp_path: Path, clips_of: ClipsOf) -> None:
    shutil.copy(folder / "a" / "1.wav", folder / "b" / "copy.wav")
    whole = pack(scan_folder(folder, True), tmp_path / "whole", val_fraction=0.3, shard_bytes=3000)

    def stop(stage: str, done: int, *_: float) -> None:
        if stage == "packing" and done == 8:
            raise InterruptedError

    options: dict[str, Any] = {"val_fraction": 0.3, "shard_bytes": 3000}
    with pytest.raises(InterruptedError):
        pack(scan_folder(folder, True), tmp_path / "out", progress=stop, **options)
    report = pack(scan_folder(folder, True), tmp_path / "out", **options)
    assert report.resumed
    assert report.manifest == whole.manifest
    assert report.notes == whole.notes
