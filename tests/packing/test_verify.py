"""Every way in which shards can be damaged is found and named; whole ones have no problems."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.index import load_index, write_index
from audio_diffusion.packing.verify import verify

Members = list[tuple[str, bytes]]


@pytest.fixture
def shards(drum_shards: Path, tmp_path: Path) -> Path:
    """A copy of the drum shards, to be damaged."""
    return Path(shutil.copytree(drum_shards, tmp_path / "shards"))


def problems_of(folder: Path) -> list[str]:
    return verify(str(folder)).problems


def members_of(shard: Path) -> Members:
    with tarfile.open(shard) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def rewrite(shard: Path, members: Members) -> None:
    """Writes a shard anew, its index and what the manifest says of its bytes with it."""
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write_index(shard)
    update(shard, bytes=shard.stat().st_size, sha256=hashlib.sha256(shard.read_bytes()).hexdigest())


def update(shard: Path, **values: Any) -> None:
    """Changes what the manifest says of a shard."""
    path = shard.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    next(one for one in manifest["shards"] if one["name"] == shard.name).update(values)
    path.write_text(json.dumps(manifest))


def edit_json(shard: Path, **values: Any) -> str:
    """Changes the json of a shard's first clip; its key."""
    members = members_of(shard)
    key, meta = members[1][0].removesuffix(".json"), json.loads(members[1][1]) | values
    rewrite(shard, [members[0], (members[1][0], json.dumps(meta).encode()), *members[2:]])
    return key


@pytest.mark.parametrize("num_workers", [1, 2])
def test_whole_shards_have_no_problems(drum_shards: Path, num_workers: int) -> None:
    told: list[tuple] = []
    result = verify(str(drum_shards), num_workers, progress=lambda *counts: told.append(counts))
    assert result.problems == []
    assert (result.num_shards, result.num_clips) == (len(list(drum_shards.glob("*.tar"))), 40)
    assert result.seconds == pytest.approx(40 * 0.512)
    assert told[-1] == (result.num_shards, result.num_shards, pytest.approx(20.48), pytest.approx(20.48))


def test_a_flipped_bit_in_the_audio_is_found_by_both_hashes(shards: Path) -> None:
    shard = shards / "train-000001.tar"
    index = load_index(shard)
    data = bytearray(shard.read_bytes())
    data[index.audio[2][0] + 5000] ^= 1
    shard.write_bytes(data)
    found, changed = hashlib.sha256(data).hexdigest(), hashlib.sha256(data[slice(*_span(index.audio[2]))]).hexdigest()
    listed = hashlib.sha256((shards.parent / "shards" / "train-000001.tar").read_bytes()).hexdigest()
    assert listed == found
    problems = problems_of(shards)
    assert len(problems) == 2
    assert problems[0].startswith("train-000001.tar: sha256 of the shard: expected ")
    assert problems[0].endswith(f", found {found}")
    assert problems[1] == (
        f"train-000001.tar: {index.keys[2]}: sha256 of the audio: expected {index.sha256[2]}, found {changed}"
    )


def _span(place: tuple[int, int]) -> tuple[int, int]:
    return place[0], place[0] + place[1]


def test_a_truncated_shard_is_found(shards: Path) -> None:
    shard = shards / "train-000000.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size // 2])
    problems = problems_of(shards)
    assert f"train-000000.tar: size in bytes: expected {size}, found {size // 2}" in problems
    assert any("cut off by the end of the shard (truncated)" in problem for problem in problems)
    assert any(problem.startswith("train-000000.tar: clips: expected 6, found ") for problem in problems)
    assert any(problem.startswith("manifest.json: clips of train: expected ") for problem in problems)


def test_an_empty_shard_is_found(shards: Path) -> None:
    (shards / "val-000000.tar").write_bytes(b"")
    problems = problems_of(shards)
    assert any("val-000000.tar: size in bytes: expected " in problem for problem in problems)
    assert any("the tar cannot be read to its end" in problem for problem in problems)


def test_a_missing_and_an_extra_shard_are_found(shards: Path) -> None:
    (shards / "train-000002.tar").rename(shards / "train-000099.tar")
    problems = problems_of(shards)
    assert "train-000002.tar: expected, as the manifest lists it, found no such file" in problems
    assert "train-000099.tar: expected only what the manifest lists, found this shard too" in problems


def test_a_copied_shard_is_found_by_its_clips(shards: Path) -> None:
    shutil.copy(shards / "train-000000.tar", shards / "val-000009.tar")
    keys = load_index(shards / "train-000000.tar").keys
    problems = problems_of(shards)
    for key in keys:
        assert f"val-000009.tar: {key}: expected once in the data set, found in train-000000.tar too" in problems
    assert any("in one split, found it in train (train-000000.tar) and in val" in problem for problem in problems)


def test_a_source_in_two_splits_is_found(shards: Path) -> None:
    source = json.loads(members_of(shards / "train-000000.tar")[1][1])["source"]
    key = edit_json(shards / "val-000000.tar", source=source)
    assert problems_of(shards) == [
        f"val-000000.tar: {key}: expected all of {source!r} in one split, "
        "found it in train (train-000000.tar) and in val"
    ]


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("frames", [7], "its index: frames: expected 8192, found 7"),
        ("sample_rate", [8000], "its index: sample_rate: expected 16000, found 8000"),
        ("channels", [2], "its index: channels: expected 1, found 2"),
        ("sha256", ["x"], "its index: sha256: expected "),
        ("audio", [[512, 9]], "its index: (offset, size): expected (512, 16428), found (512, 9)"),
    ],
)
def test_an_index_that_differs_from_the_tar_is_found(shards: Path, column: str, value: list, problem: str) -> None:
    path = shards / "train-000000.index.json"
    index = json.loads(path.read_text())
    key, index[column] = index["keys"][0], value + index[column][1:]
    path.write_text(json.dumps(index))
    (found,) = problems_of(shards)
    assert found.startswith(f"train-000000.tar: {key}: {problem}")


def test_an_index_with_other_clips_broken_or_missing_is_found(shards: Path) -> None:
    path = shards / "train-000000.index.json"
    index = json.loads(path.read_text())
    lost = index["keys"][0]
    path.write_text(json.dumps({**index, "keys": ["x", *index["keys"][1:]]}))
    (shards / "train-000001.index.json").write_text("{")
    (shards / "train-000002.index.json").unlink()
    assert set(problems_of(shards)) == {
        f"train-000000.tar: {lost}: expected in the tar and in its index, found only in the tar",
        "train-000000.tar: x: expected in the tar and in its index, found only in the index",
        "train-000001.tar: its index: expected one that can be read, found: Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1)",
        "train-000002.tar: its index: expected beside it, found none",
    }


def test_audio_that_does_not_decode_is_found(shards: Path) -> None:
    shard = shards / "train-000000.tar"
    members = members_of(shard)
    name, meta, broken = members[0][0], json.loads(members[1][1]), b"no audio at all"
    meta["sha256"] = hashlib.sha256(broken).hexdigest()
    rewrite(shard, [(name, broken), (members[1][0], json.dumps(meta).encode()), *members[2:]])
    assert problems_of(shards) == [
        f"train-000000.tar: {name.removesuffix('.wav')}: expected audio that decodes to its end, found: cannot be "
        "decoded: Format not recognised."
    ]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"frames": 8191}, "frames in the json: expected 8192, found 8191"),
        ({"sample_rate": 8000}, "sample_rate in the json: expected 16000, found 8000"),
        ({"channels": None}, "channels in the json: expected 1, found none"),
        ({"sha256": ""}, "sha256 of the audio: expected one in the json, found "),
    ],
)
def test_a_json_that_is_wrong_is_found(shards: Path, values: dict[str, Any], problem: str) -> None:
    key = edit_json(shards / "train-000000.tar", **values)
    problems = problems_of(shards)
    assert problems[0].startswith(f"train-000000.tar: {key}: {problem}")
    assert all(other.startswith("manifest.json: seconds of train: ") for other in problems[1:])


def test_a_json_that_cannot_be_read_or_is_missing_is_found(shards: Path) -> None:
    shard = shards / "train-000000.tar"
    members = members_of(shard)
    rewrite(shard, [members[0], (members[1][0], b"{"), members[2], *members[4:]])
    problems = problems_of(shards)
    broken, missing = (members[i][0].removesuffix(".wav") for i in (0, 2))
    assert any(
        p.startswith(f"train-000000.tar: {broken}: expected json of at most 1000000 bytes that") for p in problems
    )
    assert f"train-000000.tar: {missing}: expected a json, found none" in problems


def test_a_lost_clip_is_found(shards: Path) -> None:
    shard = shards / "train-000000.tar"
    rewrite(shard, members_of(shard)[2:])
    problems = problems_of(shards)
    assert problems[0] == "train-000000.tar: clips: expected 6, found 5"
    assert any(problem.startswith("manifest.json: clips with the label") for problem in problems)


def test_links_and_names_that_lead_out_are_found(shards: Path, write_tar: Callable[..., Path]) -> None:
    link = tarfile.TarInfo("x.wav")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(shards / "train-000000.tar", [link, ("../y.wav", b"y")])
    problems = problems_of(shards)
    assert any("x.wav: expected a member that can be used, found: a link" in problem for problem in problems)
    assert any(
        "../y.wav: expected a member that can be used, found: its name leads out" in problem for problem in problems
    )


def test_a_manifest_that_is_broken_missing_or_wrong_is_found(shards: Path) -> None:
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "labels": {**manifest["labels"], "tom": 9}, "seconds": {"train": 1}}))
    problems = problems_of(shards)
    assert "manifest.json: clips with the label 'tom': expected 9, found 8" in problems
    assert any(problem.startswith("manifest.json: seconds of train: expected 1.000, found ") for problem in problems)
    path.write_text("{")
    assert [problem.partition(" (")[0] for problem in problems_of(shards)] == [
        "manifest.json: expected json, found something else"
    ]
    path.unlink()
    assert problems_of(shards) == ["manifest.json: expected the manifest of make_shards.py, found none"]


def test_a_run_that_is_not_finished_is_found(shards: Path) -> None:
    (shards / ".packing").mkdir()
    (shards / ".packing" / "plan.jsonl").touch()
    assert problems_of(shards) == [".packing: the run that writes these shards is not finished: repeat its command"]


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"verify: expected a folder of shards, local or a URL, got '.*'"):
        verify(str(tmp_path))


def test_shards_on_a_web_server_are_verified(shards: Path, serve: Callable[[Path], str]) -> None:
    url, store = serve(shards), RemoteStore(None, retries=0)
    assert verify(url, 1, store).problems == []
    data = bytearray((shards / "train-000000.tar").read_bytes())
    data[3000] ^= 1
    (shards / "train-000000.tar").write_bytes(data)
    (shards / "val-000000.tar").unlink()
    (shards / "train-000001.index.json").unlink()
    problems = verify(url, 2, store).problems
    assert any(problem.startswith("train-000000.tar: sha256 of the shard: expected ") for problem in problems)
    assert "val-000000.tar: expected, as the manifest lists it, found no such file" in problems
    assert "train-000001.tar: its index: expected beside it, found none" in problems
