"""Which shards there are, what their manifests promise, and their members as bytes."""

import gzip
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_diffusion.data.shards import shards as module
from audio_diffusion.data.shards.find import by_name, describe_manifests, expand, held_out, read_classes
from audio_diffusion.data.shards.shards import Shards

WriteTar = Callable[..., Path]


# --- finding shards


@pytest.fixture
def three(tmp_path: Path, write_tar: WriteTar) -> Path:
    folder = tmp_path / "sh[1]"
    folder.mkdir()
    for name in ("train-000002", "train-000000", "train-000001", "val-000000", "other"):
        write_tar(folder / f"{name}.tar", [(f"{name}.wav", b"1")])
    return folder


def test_a_folder_is_its_training_shards_in_order(three: Path) -> None:
    assert expand(str(three)) == [str(three / f"train-00000{i}.tar") for i in range(3)]
    assert expand(held_out(str(three), None)["train"]) == [str(three / "val-000000.tar")]


def test_globs_and_braces(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(three)
    assert expand("train-*.tar") == [f"train-00000{i}.tar" for i in range(3)]
    assert expand("train-00000[12].tar") == ["train-000001.tar", "train-000002.tar"]
    assert expand("train-{000000..000002}.tar") == [f"train-00000{i}.tar" for i in range(3)]
    assert expand("{train,val}-*0.tar") == ["train-000000.tar", "val-000000.tar"]
    assert expand("other.tar") == ["other.tar"]
    assert expand("train-000000.tar::other.tar") == ["train-000000.tar", "other.tar"]
    for pattern in ("train-*.tar", "train-{000000..000002}.tar", "train-000000.tar", "."):
        assert expand(held_out(pattern, None)["train"]) == ["val-000000.tar"]


def test_missing_shards_are_refused_with_what_to_do(
    three: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(three)
    with pytest.raises(
        ValueError, match=r"'train-000003.tar' does not exist \(nor do 2 more\)\. Make shards with: python make_s"
    ):
        expand("train-{000000..000005}.tar")
    with pytest.raises(ValueError, match=r"expected files at 'none-\*\.tar', but 'none-\*\.tar' does not exist\. Make"):
        expand("none-*.tar")
    with pytest.raises(ValueError, match="'nowhere' does not exist"):
        expand("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty/train-\*.tar' does not exist"):
        expand(str(tmp_path / "empty"))


def test_what_is_no_shard_comes_with_what_to_write(tmp_path: Path) -> None:
    sounds, foreign = tmp_path / "my sounds", tmp_path / "foreign"
    (sounds / "dog").mkdir(parents=True)
    (sounds / "dog" / "a.flac").touch()
    foreign.mkdir()
    for name in ("a-000.tar", "a-001.tar", "val-000000.tar"):
        (foreign / name).touch()
    pack = f"python make_shards.py 'input={sounds}' output=data/mine, then data.train=data/mine"
    with pytest.raises(ValueError, match=rf"does not exist\. It contains audio\. Pack it first: {re.escape(pack)}$"):
        expand(str(sounds))
    with pytest.raises(
        ValueError, match=r"flac' is an audio file\. Pack it first: python make_shards.py 'input=.*a\.flac'"
    ):
        expand(str(sounds / "dog" / "a.flac"))
    with pytest.raises(
        ValueError, match=r"flac' is an audio file\. Pack it first: python make_shards.py 'input=.*/dog'"
    ):
        expand(str(sounds / "dog" / "*.flac"))
    with pytest.raises(ValueError, match=r"2 other shards, such as 'a-000.tar': use 'data.train=.*/foreign/\*.tar'$"):
        expand(str(foreign))
    assert len(expand(str(foreign / "*.tar"))) == 3


def test_classes_come_from_the_manifest_beside_the_shards(three: Path, drum_shards: Path) -> None:
    assert read_classes([str(drum_shards)]) == ["clap", "hat", "kick", "snare", "tom"]
    assert read_classes([str(drum_shards / "train-*.tar")]) == ["clap", "hat", "kick", "snare", "tom"]
    assert read_classes([str(three)]) == []
    for another_tools in ('{"files": []}', "[1, 2]"):
        (three / "manifest.json").write_text(another_tools)
        assert read_classes([str(three)]) == []


def test_classes_of_several_data_sets_are_all_of_them(drum_shards: Path, tmp_path: Path, three: Path) -> None:
    (three / "manifest.json").write_text(json.dumps({"shards": [], "classes": ["flute", "kick"]}))
    assert read_classes([str(drum_shards), str(three)]) == ["clap", "flute", "hat", "kick", "snare", "tom"]
    (three / "manifest.json").unlink()
    assert read_classes([str(drum_shards), str(three)]) == []


def test_data_sets_have_names() -> None:
    assert by_name("s") == {"train": "s"}
    assert by_name({"a": "x", "b": "y"}) == {"a": "x", "b": "y"}
    assert held_out({"a": "x/t.tar", "b": "y/t.tar"}, None) == {"a": "x/val-*.tar", "b": "y/val-*.tar"}
    assert held_out("s", "v") == {"train": "v"}


# --- what the manifest promises


@pytest.fixture
def packed(drum_shards: Path, tmp_path: Path) -> Path:
    """A copy of the drum shards that a test may spoil."""
    return Path(shutil.copytree(drum_shards, tmp_path / "packed"))


def test_what_the_manifest_tells_is_not_read_from_the_shards(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_index", lambda *args: pytest.fail("an index was read"))
    shards = Shards.open([str(packed)])
    manifest = json.loads((packed / "manifest.json").read_text())
    listed = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    assert [Path(path).name for path in shards.paths] == [shard["name"] for shard in listed]
    assert shards.num_clips.tolist() == [shard["clips"] for shard in listed]
    assert shards.num_bytes.tolist() == [os.path.getsize(path) for path in shards.paths]
    shards.check_sizes()
    described = describe_manifests({"drums": str(packed)}, None)["drums"]
    assert described["clips"] == manifest["clips"]
    assert len(described["manifest_sha256"]) == 64


def test_shards_without_a_manifest_are_counted_by_their_indexes(packed: Path) -> None:
    with_manifest = Shards.open([str(packed)])
    (packed / "manifest.json").unlink()
    without = Shards.open([str(packed)])
    assert without.paths == with_manifest.paths
    assert without.num_clips.tolist() == with_manifest.num_clips.tolist()
    assert without.num_bytes.tolist() == with_manifest.num_bytes.tolist()


@pytest.mark.parametrize("fault", ["missing", "cut", "html"])
def test_a_run_does_not_start_on_shards_that_are_not_the_manifests(packed: Path, fault: str) -> None:
    shard = sorted(packed.glob("train-*.tar"))[1]
    if fault == "missing":
        shard.unlink()
        with pytest.raises(
            ValueError, match=rf"the manifest of .*packed' lists \d training shards, but '{shard}' does not"
        ):
            Shards.open([str(packed)])
        return
    data = shard.read_bytes()[:-512] if fault == "cut" else b"<!DOCTYPE html><html>Not found</html>"
    size = shard.stat().st_size
    shard.write_bytes(data)
    page = " of an HTML page" if fault == "html" else ""
    problem = f"1 of .* differ from their manifest:\n *{shard}: expected {size} bytes, got {len(data)}{page}\n"
    with pytest.raises(ValueError, match=problem):
        Shards.open([str(packed)]).check_sizes()


def test_a_broken_manifest_is_named(packed: Path) -> None:
    (packed / "manifest.json").write_text('{"shards": [')
    with pytest.raises(ValueError, match=r"shards: .*manifest.json is not json"):
        Shards.open([str(packed)])


# --- reading members


@pytest.fixture
def five(tmp_path: Path, write_tar: WriteTar) -> Shards:
    return Shards.open(
        [str(write_tar(tmp_path / f"{i}.tar", [(f"{i}.wav", bytes(range(i, i + 200)))])) for i in range(5)]
    )


def audio_of(shards: Shards, shard: int) -> bytes:
    member = shards.member(shard, shards.index(shard).audio[0])
    assert isinstance(member, memoryview)
    return bytes(member)


def test_a_member_is_the_shards_own_memory(five: Shards) -> None:
    assert audio_of(five, 3) == bytes(range(3, 203))
    assert five.whole_members(3, 0, ()) == []  # nothing is to be fetched


def test_few_shards_are_mapped_and_indexed_at_once_and_members_of_closed_ones_still_read(
    five: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT_MAPS", 2)
    monkeypatch.setattr(module, "_KEPT_CLIPS", 3)
    first = five.member(0, five.index(0).audio[0])
    for shard in (1, 2, 1, 3, 4, 0, 1, 2):
        assert audio_of(five, shard) == bytes(range(shard, shard + 200))
        assert len(five._maps) <= 2
        assert len(five._indexes) <= 3
    assert bytes(first) == bytes(range(200))  # type: ignore[arg-type]


def test_shards_travel_to_another_process(five: Shards) -> None:
    audio_of(five, 0)
    assert audio_of(pickle.loads(pickle.dumps(five)), 2) == bytes(range(2, 202))


def test_shards_without_any_audio_are_refused_and_say_why(tmp_path: Path, write_tar: WriteTar) -> None:
    songs = str(write_tar(tmp_path / "songs.tar", [("a.m4a", b"x"), ("b.m4a", b"x")]))
    with pytest.raises(
        ValueError, match=r"found none; the first of 2 members that cannot be used: .*m4a is not a supported"
    ):
        Shards.open([songs])
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(write_tar(tmp_path / "plain.tar", [("a.wav", b"x")]).read_bytes()))
    with pytest.raises(ValueError, match=r"found none; .*the tar cannot be read to its end"):
        Shards.open([str(packed)])
    pictures = str(write_tar(tmp_path / "pictures.tar", [("a.jpg", b"x")]))
    with pytest.raises(ValueError, match=r"shards: expected audio in the 1 shards of \[.*pictures.tar'\], found none$"):
        Shards.open([pictures])
