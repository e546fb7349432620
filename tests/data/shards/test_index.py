"""The index says where each clip lies, whoever wrote the shard, and names what cannot be used."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_diffusion.data.shards.index import ShardIndex, index_path, load_index, write_atomic, write_index

WriteTar = Callable[..., Path]
Members = list[tuple[str, bytes]]


def contents(shard: Path) -> dict[str, bytes]:
    """Name -> bytes of a tar's members, as tarfile reads them."""
    with tarfile.open(shard) as tar:
        return {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}


def by_index(index: ShardIndex) -> dict[str, tuple[bytes, bytes]]:
    """Key -> bytes of the audio and the json that an index points at."""
    data = Path(index.path).read_bytes()
    pairs = zip(index.audio, index.fields.get("json", [(0, 0)] * len(index.keys)), strict=True)
    cut = [(data[a : a + n], data[b : b + m]) for (a, n), (b, m) in pairs]
    return dict(zip(index.keys, cut, strict=True))


def test_the_index_of_packed_shards_points_at_each_members_bytes(drum_shards: Path) -> None:
    found = 0
    for shard in drum_shards.glob("*.tar"):
        assert Path(index_path(shard)).is_file()
        index, truth = load_index(shard), contents(shard)
        assert by_index(index) == {k: (truth[f"{k}.wav"], truth[f"{k}.json"]) for k in index.keys}
        assert len(index.keys) * 2 == len(truth)
        assert index.num_bytes == shard.stat().st_size
        assert index.refused == []
        found += len(index.keys)
    assert found == 40


@pytest.mark.parametrize("format", ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"])
def test_shards_of_plain_webdataset_are_indexed_on_first_sight(tmp_path: Path, format: str) -> None:
    shard = tmp_path / "other.tar"
    with wds.TarWriter(str(shard), format=format) as writer:
        for i in range(5):
            key = f"speaker {i}/{'long' * 30 if format != 'USTAR_FORMAT' else ''}_{i}"
            sample = {"__key__": key, "flac": b"audio%d" % i * 100, "json": {"label": i}, "txt": f"text {i}"}
            writer.write(sample if i != 3 else {k: v for k, v in sample.items() if k != "json"})
    index, truth = load_index(shard), contents(shard)
    assert by_index(index) == {k: (truth[f"{k}.flac"], truth.get(f"{k}.json", b"")) for k in index.keys}
    assert [key[-2:] for key in index.keys] == [f"_{i}" for i in range(5)]
    assert index.fields["json"][3] == (0, 0)
    data = shard.read_bytes()
    assert [data[at : at + size] for at, size in index.fields["txt"]] == [b"text %d" % i for i in range(5)]
    assert Path(index_path(shard)).is_file()


def test_keys_end_at_the_last_dot_and_may_be_unicode(tmp_path: Path, write_tar: WriteTar) -> None:
    names = [
        "01. Intro.flac",
        "01. Intro.json",
        "a/b.c/Übung 太鼓.WAV",
        "a/b.c/Übung 太鼓.json",
        "./x.mp3",
        "no_suffix",
        "a.b/c",
    ]
    write_tar(tmp_path / "s.tar", [(name, name.encode()) for name in names])
    index = load_index(tmp_path / "s.tar")
    assert by_index(index) == {
        "01. Intro": (b"01. Intro.flac", b"01. Intro.json"),
        "a/b.c/Übung 太鼓": ("a/b.c/Übung 太鼓.WAV".encode(), "a/b.c/Übung 太鼓.json".encode()),
        "./x": (b"./x.mp3", b""),
    }
    assert index.refused == []


def test_members_need_not_be_adjacent(tmp_path: Path, write_tar: WriteTar) -> None:
    names = ["b.json", "a.wav", "c.wav", "a.json", "b.wav"]
    write_tar(tmp_path / "s.tar", [(name, name.encode()) for name in names])
    assert by_index(load_index(tmp_path / "s.tar")) == {
        "a": (b"a.wav", b"a.json"),
        "c": (b"c.wav", b""),
        "b": (b"b.wav", b"b.json"),
    }


def special(name: str, type: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info


def test_what_cannot_be_used_is_named_and_never_a_clip(tmp_path: Path, write_tar: WriteTar) -> None:
    members = [
        ("good.wav", b"audio"),
        ("good.json", b"{}"),
        ("../x.wav", b"up"),
        ("a/../../y.json", b"up"),
        ("/etc/z.wav", b"absolute"),
        special("link.wav", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.wav", tarfile.LNKTYPE, "good.wav"),
        special("pipe.json", tarfile.FIFOTYPE),
        special("folder.wav", tarfile.DIRTYPE),
        ("good.wav", b"again"),
        ("good.flac", b"again"),
        ("good.json", b"again"),
        ("evil.pickle", b"cos\nsystem\n"),
        ("lonely.json", b"{}"),
        ("song.M4A", b"audio"),
        ("picture.jpg", b"none of ours"),
        ("._good.wav", b"what macOS keeps of good.wav"),
        ("__MACOSX/._good.json", b"and of its json"),
    ]
    index = load_index(write_tar(tmp_path / "s.tar", members))
    assert by_index(index) == {"good": (b"audio", b"{}")}
    out, link, second = (
        "its name leads out of the shard",
        "a link or another special member",
        "a second member of this name",
    )
    expected = {
        "../x.wav": out, "a/../../y.json": out, "/etc/z.wav": out,
        "link.wav": link, "hard.wav": link, "pipe.json": link,
        "good.flac": second, "good.json": second, "good.wav": second, "lonely.json": "json without audio",
        "song.M4A": "M4A is not a supported audio format",
    }  # fmt: skip
    refused = {key: reason for key, _, reason in index.refused}
    kinds = {"unsafe": {out, link}, "duplicate": {second}, "metadata": {"json without audio"}}
    kinds["format"] = {expected["song.M4A"]}
    assert all(expected[key] in kinds[kind] for key, kind, _ in index.refused)
    assert refused.keys() == expected.keys()
    assert all(reason.startswith(expected[key]) for key, reason in refused.items())
    assert "pip install -e '.[av]'" in refused["song.M4A"]
    skipped = index.skipped()
    assert [s[1:] for s in skipped] == [tuple(refused) for refused in index.refused]
    assert {s.shard for s in skipped} == {str(tmp_path / "s.tar")}


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse.wav")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(bytes(512)))
    index = load_index(tmp_path / "s.tar")
    assert index.keys == []
    assert index.refused[0][0] == "sparse.wav"


CLIPS = [(f"{i}.{ending}", bytes([i]) * 700) for i in range(6) for ending in ("json", "wav")]  # 1536 bytes a member


@given(st.integers(0, 12 * 1536))
@settings(max_examples=60, deadline=None)
def test_a_truncated_shard_is_named_and_its_whole_clips_are_kept(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, "s.tar")
        with tarfile.open(shard, "w") as tar:
            for name, data in CLIPS:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        os.truncate(shard, size)
        index = write_index(shard)
        whole = [
            name[0] for i, (name, data) in enumerate(CLIPS) if name.endswith("wav") and size >= i * 1536 + 512 + 700
        ]
        assert by_index(index) == {key: (bytes([int(key)]) * 700,) * 2 for key in whole}
        assert index.refused != []
        if len(whole) < 6:
            assert any("cannot be read to its end" in reason or "cut off" in reason for *_, reason in index.refused)


def test_damage_in_the_middle_of_a_shard_is_named(tmp_path: Path, write_tar: WriteTar) -> None:
    shard = write_tar(tmp_path / "s.tar", CLIPS)
    damaged = bytearray(shard.read_bytes())
    damaged[6 * 1536] ^= 1  # the name in the seventh header, which its checksum covers
    shard.write_bytes(damaged)
    index = load_index(shard)
    assert index.keys == ["0", "1", "2"]
    assert len(index.refused) == 1
    assert index.refused[0][0] == "s.tar"
    assert "cannot be read to its end: no end mark after the last member" in index.refused[0][2]


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html><html>404</html>" * 100, b"\x1f\x8b" + bytes(5000)])
def test_what_is_no_tar_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    index = load_index(tmp_path / "s.tar")
    assert index.keys == []
    assert index.refused[0][0] == "s.tar"
    assert "cannot be read to its end" in index.refused[0][2]


def test_a_member_of_negative_size_does_not_send_the_scan_in_circles(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.wav")
    info.size = -1024
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 2 + bytes(1024))
    index = load_index(tmp_path / "s.tar")
    assert index.keys == []
    assert "cannot be read to its end" in index.refused[0][2]


def test_the_index_is_read_again_and_made_anew_when_the_shard_changed(tmp_path: Path, write_tar: WriteTar) -> None:
    shard = write_tar(tmp_path / "s.tar", [("a.wav", b"1")])
    assert load_index(shard).keys == ["a"]
    doctored = json.loads(Path(index_path(shard)).read_text()) | {"keys": ["from the index"]}
    Path(index_path(shard)).write_text(json.dumps(doctored))
    assert load_index(shard).keys == ["from the index"]

    write_tar(shard, [("b.wav", bytes(20_000))])
    os.utime(shard, ns=(0, 0))  # older than its index, but of another size
    assert load_index(shard).keys == ["b"]
    assert json.loads(Path(index_path(shard)).read_text())["keys"] == ["b"]

    size = shard.stat().st_size
    write_tar(shard, [("c.wav", bytes(20_000))])  # of the same size, but newer
    newer = Path(index_path(shard)).stat().st_mtime_ns + 1_000_000
    os.utime(shard, ns=(newer, newer))
    assert shard.stat().st_size == size
    assert load_index(shard).keys == ["c"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"version": 1', '{"version": 0, "num_bytes": 10240, "keys": []}']
)
def test_a_broken_index_is_made_anew(tmp_path: Path, write_tar: WriteTar, text: str) -> None:
    shard = write_tar(tmp_path / "s.tar", [("a.wav", b"1")])
    Path(index_path(shard)).write_text(text)
    assert load_index(shard).keys == ["a"]
    assert json.loads(Path(index_path(shard)).read_text())["keys"] == ["a"]


def test_where_no_index_can_be_written_it_is_kept_in_memory(
    tmp_path: Path, write_tar: WriteTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*args: object, **kwargs: object) -> None:
        raise PermissionError("read-only file system")

    shard = write_tar(tmp_path / "s.tar", [("a.wav", b"1")])
    monkeypatch.setattr(Path, "write_text", read_only)
    assert load_index(shard).keys == ["a"]
    assert os.listdir(tmp_path) == ["s.tar"]


def test_a_moved_shard_is_read_where_it_lies_now(tmp_path: Path, write_tar: WriteTar) -> None:
    (tmp_path / "old").mkdir()
    load_index(write_tar(tmp_path / "old" / "s.tar", [("a.wav", b"1")]))
    (tmp_path / "old").rename(tmp_path / "new")
    index = load_index(tmp_path / "new" / "s.tar")
    assert index.path == str(tmp_path / "new" / "s.tar")
    assert by_index(index) == {"a": (b"1", b"")}


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "f", "new \udc80")
    assert (tmp_path / "f").read_text() == "old"
    write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new"
