"""What is found below a folder, in a bucket, on a web server, or named by a manifest, and what is known of it."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.packing.form import Form
from audio_diffusion.packing.manifests import scan_manifest
from audio_diffusion.packing.pack import pack
from audio_diffusion.packing.sources import Source, scan_folder, scan_url, split_of

Encode = Callable[..., bytes]
ClipsOf = Callable[[Path], dict[str, tuple[str, bytes, dict[str, Any]]]]


def test_the_share_held_out_is_the_fraction() -> None:
    sources = [Source(Path(f"{i}.wav"), f"{i}.wav") for i in range(4000)]
    for fraction in (0.1, 0.4):
        held_out = {source.name for source in sources if split_of(source, fraction) == "val"}
        assert len(held_out) == pytest.approx(4000 * fraction, rel=0.1)
    few = {source.name for source in sources if split_of(source, 0.1) == "val"}
    assert few < held_out  # a larger fraction only adds


def test_audio_is_found_by_its_ending_in_folders_of_any_depth_and_hidden_files_too(folder: Path) -> None:
    data = (folder / "a" / "1.wav").read_bytes()
    (folder / "c.wav").mkdir()
    (folder / "loop").symlink_to(folder)
    (folder.parent / "far").mkdir()
    (folder.parent / "far" / "away.wav").write_bytes(data)
    (folder / "linked").symlink_to(folder.parent / "far")
    audio = ("a/deep/er/x.FLAC", "c.wav/y.aiff", ".hidden.wav", "a/.wav", "a/01. Intro.flac", "a/..wav", "b/a..b.wav")
    other = ("readme.txt", "a/cover.jpg", "b/wav", "a/x.wav.bak")
    for name in (*audio, *other):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sources = scan_folder(folder, False)
    assert {source.name for source in sources if "/" in source.name or source.name.startswith(".")} > set(audio)
    assert len(sources) == 12 + len(audio) + 1
    assert "linked/away.wav" in {source.name for source in sources}
    assert len({source.key for source in sources}) == len(sources)


def test_hidden_folders_are_not_searched_and_those_with_audio_are_named(folder: Path, tmp_path: Path) -> None:
    for name in (".trash/x/1.wav", ".trash/2.wav", "a/.cache/3.wav", ".git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((folder / "a" / "1.wav").read_bytes())
    report = pack(scan_folder(folder, True), tmp_path / "out", val_fraction=0.3)
    assert report.refused == [
        (".trash", "a hidden folder: not searched"),
        ("a/.cache", "a hidden folder: not searched"),
    ]
    assert sum(report.clips.values()) == 12


def test_labels_are_the_folders_directly_below(folder: Path) -> None:
    deep = folder / "a" / "deep" / "x.wav"
    deep.parent.mkdir()
    deep.touch()
    (folder / "bare.wav").touch()
    labels = {source.name: source.fields for source in scan_folder(folder, True)}
    assert labels["a/deep/x.wav"] == labels["a/1.wav"] == {"label": "a"}
    assert labels["bare.wav"] == {}
    assert all(source.fields == {} for source in scan_folder(folder, False))


def test_folders_without_audio_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"input: expected a folder of audio, got '.*nowhere'"):
        scan_folder(tmp_path / "nowhere", True)
    with pytest.raises(ValueError, match=r"input: no audio \(wav, flac, .*\) below"):
        scan_folder(tmp_path, True)


# --- manifests


def write_manifest(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_a_manifest_says_which_files_their_splits_and_labels(folder: Path, tmp_path: Path, clips_of: ClipsOf) -> None:
    manifest = write_manifest(
        folder, "file,label,split,caption", 'a/1.wav,drum,train,"hit, hard"', "b/2.wav,bass,validation,",
        "b/4.wav,drum,valid,x", "b/6.wav,drum,test,y", "b/8.wav,bass,val,z", "b/0.wav,bass,,",
    )  # fmt: skip
    report = pack(scan_manifest(folder, manifest), tmp_path / "out", val_fraction=1e-9)
    clips = clips_of(tmp_path / "out")
    assert {name: split for name, (split, _, _) in clips.items()} == {
        "a/1.wav": "train", "b/2.wav": "val", "b/4.wav": "val", "b/6.wav": "test", "b/8.wav": "val", "b/0.wav": "train",
    }  # fmt: skip
    assert report.clips == {"train": 2, "val": 3, "test": 1}
    assert report.classes == ["bass", "drum"]
    assert clips["a/1.wav"][2].items() > {"label": "drum", "caption": "hit, hard", "source": "a/1.wav"}.items()
    assert "split" not in clips["a/1.wav"][2]
    assert "caption" not in clips["b/2.wav"][2]
    assert clips["a/1.wav"][1] == (folder / "a" / "1.wav").read_bytes()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_manifest_may_come_from_a_spreadsheet_and_call_its_column_path(folder: Path, encoding: str) -> None:
    manifest = write_manifest(folder, "path,label", "a/1.wav,é", "./b/../a/3.wav,ü", encoding=encoding)
    assert [(source.name, source.fields) for source in scan_manifest(folder, manifest)] == [
        ("a/1.wav", {"label": "é"}),
        ("a/3.wav", {"label": "ü"}),
    ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["name,label", "a/1.wav,x"], r"expected a column file or path in .*manifest.csv, got \['name', 'label'\]"),
        ([""], "expected a column file or path"),
        (["file", "a/1.wav", "../out.wav"], r"line 3 of .* names .*out.wav, which is outside"),
        (["file", "/etc/passwd"], "line 2 of .* names /etc/passwd, which is outside"),
        (["file", "a/1.wav", "b/../a/1.wav"], "line 3 of .* names .*1.wav a second time"),
        (["label,file", "x,a/1.wav", "y"], "line 3 of .* names no file"),
        (["file", "s3://bucket/1.wav"], r"line 2 of .* names s3://bucket/1.wav, which is outside"),
        (["file"], ".*manifest.csv names no files"),
        (["label,file", "x,"], "line 2 of .* names no file"),
    ],
)
def test_manifests_with_mistakes_are_refused(folder: Path, lines: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=f"manifest: {problem}"):
        scan_manifest(folder, write_manifest(folder, *lines))


def test_a_file_may_be_a_link_that_leads_out_of_the_folder(folder: Path, tmp_path: Path, clips_of: ClipsOf) -> None:
    """As in snapshots of the Hugging Face hub, git-annex and DVC: names stay inside, contents lie elsewhere."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes((folder / "a" / "1.wav").read_bytes())
    (folder / "link.wav").symlink_to(tmp_path / "blobs" / "0a1b")
    (tmp_path / "snapshot").symlink_to(folder)
    for place in (folder, tmp_path / "snapshot"):
        rows = ["file,split", "link.wav,train", f"{folder}/a/3.wav,val"]
        sources = scan_manifest(place, write_manifest(tmp_path, *rows))
        assert [(source.name, source.path) for source in sources] == [
            ("link.wav", place / "link.wav"), ("a/3.wav", place / "a" / "3.wav")
        ]  # fmt: skip
    pack(sources, tmp_path / "out")
    clips = clips_of(tmp_path / "out")
    assert clips["link.wav"][1] == (tmp_path / "blobs" / "0a1b").read_bytes()


def test_a_split_of_another_name_is_refused(folder: Path, tmp_path: Path) -> None:
    manifest = write_manifest(folder, "file,split", "a/1.wav,train", "a/3.wav,dev")
    with pytest.raises(ValueError, match=r"split of a/3.wav: expected train, val, .*, got 'dev'"):
        pack(scan_manifest(folder, manifest), tmp_path / "out")


def test_files_a_manifest_names_that_are_not_there_or_no_audio_are_refused_by_name(
    folder: Path, tmp_path: Path, clips_of: ClipsOf
) -> None:
    audio = (folder / "a" / "1.wav").read_bytes()
    for name in ("noending", "a.bin"):
        (folder / name).write_bytes(audio)
    manifest = write_manifest(
        folder, "file,split", "a/1.wav,train", "a/3.wav,val", "gone.wav,val", "noending,val", "a.bin,val", "a,val"
    )
    report = pack(scan_manifest(folder, manifest), tmp_path / "out")
    assert clips_of(tmp_path / "out").keys() == {"a/1.wav", "a/3.wav"}
    reasons = dict(report.refused)
    assert reasons.keys() == {"gone.wav", "noending", "a.bin", "a"}
    assert reasons["gone.wav"] == "there is no such file"
    assert all("its name has none of the extensions wav, flac" in reasons[name] for name in ("noending", "a.bin", "a"))


def test_a_jsonl_keeps_the_types_of_what_it_says(folder: Path, tmp_path: Path, clips_of: ClipsOf) -> None:
    rows: list[dict[str, Any]] = [
        {"path": "a/1.wav", "label": 3, "split": "train", "bpm": 120.5, "tags": ["x", {"y": None}], "live": True},
        {"path": "b/2.wav", "label": "3", "split": "val", "caption": "größer", "nothing": None, "frames": "mine"},
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    report = pack(scan_manifest(folder, manifest), tmp_path / "out")
    assert report.classes == ["3"]
    clips = clips_of(tmp_path / "out")
    told = {"label": "3", "bpm": 120.5, "tags": ["x", {"y": None}], "live": True}
    assert {key: clips["a/1.wav"][2][key] for key in told} == told
    meta = clips["b/2.wav"][2]
    assert (meta["caption"], meta["given_frames"], meta["frames"], "nothing" in meta) == ("größer", "mine", 102, False)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1 of .*: its json cannot be read"),
        ("[1]", "line 1 of .*: its json is a list, not an object"),
        ('{"file": 7}', "line 1 of .* names no file"),
        ('{"file": "a/1.wav", "label": ["x"]}', r"line 1 of .*: label: expected text or a number, got \['x'\]"),
    ],
)
def test_jsonl_with_mistakes_is_refused(folder: Path, tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "list.jsonl").write_text(line)
    with pytest.raises(ValueError, match=f"manifest: {problem}"):
        scan_manifest(folder, tmp_path / "list.jsonl")


def test_a_sidecar_tells_more_than_the_folder_and_a_broken_one_refuses_its_file(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "1.json").write_text('{"label": "kick", "caption": "dry", "split": "test", "bpm": null}')
    (folder / "b" / "2.json").write_text('{"caption": "wet"}')
    (folder / "b" / "4.json").write_text("{")
    (folder / "b" / "1.json").write_text('{"label": "of no file"}')
    sources = {source.name: source for source in scan_folder(folder, True)}
    assert sources["a/1.wav"].fields == {"label": "kick", "caption": "dry", "split": "test"}
    assert sources["b/2.wav"].fields == {"label": "b", "caption": "wet"}
    assert split_of(sources["a/1.wav"], 0.5) == "test"
    report = pack(list(sources.values()), tmp_path / "out", val_fraction=0.3)
    ((name, reason),) = report.refused
    assert name == "b/4.wav"
    assert reason.startswith("its sidecar b/4.json cannot be used: its json cannot be read")
    assert report.classes == ["a", "b", "kick"]
    without = {source.name: source.fields for source in scan_folder(folder, False)}
    assert (without["a/3.wav"], without["b/2.wav"]) == ({}, {"caption": "wet"})


# --- manifests as people and programs write them


@pytest.mark.parametrize(
    "lines",
    [
        ["file, label , split", "a/1.wav, x , train"],
        ["File,LABEL,Split", "a/1.wav,x,Train"],
        ["file;label;split", "a/1.wav;x;train"],
        ["file\tlabel\tsplit", "a/1.wav\tx\ttrain"],
        ["split,file,label", "train,a/1.wav,x", ",,"],
    ],
)
def test_padding_case_and_separators_of_a_csv_do_not_matter(folder: Path, lines: list[str]) -> None:
    (source,) = scan_manifest(folder, write_manifest(folder, *lines))
    assert (source.name, source.fields["label"], split_of(source, 0.5)) == ("a/1.wav", "x", "train")


@pytest.mark.parametrize(
    ("header", "near"),
    [("file,spilt", "split"), ("file,lable", "label"), ("file, Labels", "label"), ("fiel,label", "file"),
     ("file,captoin", "caption"), ("path,captions", "caption")],
)  # fmt: skip
def test_misspelt_columns_are_refused_with_the_nearest_name(folder: Path, header: str, near: str) -> None:
    name = next(name.strip() for name in header.split(",") if name.strip() not in ("file", "path", "label"))
    with pytest.raises(ValueError, match=rf"manifest: line 1 of .*: column '{name}': did you mean '{near}'"):
        scan_manifest(folder, write_manifest(folder, header, "a/1.wav,x"))
    (folder / "list.jsonl").write_text('{"file": "a/1.wav", "lable": "x"}')
    with pytest.raises(ValueError, match=r"manifest: line 1 of .*: column 'lable': did you mean 'label'"):
        scan_manifest(folder, folder / "list.jsonl")


def test_columns_that_mean_nothing_here_are_kept(folder: Path) -> None:
    manifest = write_manifest(folder, "file,label,labels,patch,title,caption_en", "a/1.wav,x,y,z,t,c")
    (source,) = scan_manifest(folder, manifest)
    assert source.fields == {"label": "x", "labels": "y", "patch": "z", "title": "t", "caption_en": "c"}


def test_rows_that_are_too_long_are_refused_and_short_ones_leave_columns_empty(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"line 3 of .*: expected 2 values \(file, caption\), got 3; a value that contains ','"
    ):
        scan_manifest(folder, write_manifest(folder, "file,caption", "a/1.wav,dry", "a/3.wav,wet, loud"))
    sources = scan_manifest(folder, write_manifest(folder, "file,label,caption", "a/1.wav", "a/3.wav,x"))
    assert [source.fields for source in sources] == [{}, {"label": "x"}]


def test_columns_that_come_twice_are_refused_and_lines_may_end_in_any_way(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1 of .*: expected each column once, found 'label' twice"):
        scan_manifest(folder, write_manifest(folder, "file,label,Label", "a/1.wav,x,y"))
    (folder / "old.csv").write_bytes(b"file,label\ra/1.wav,x\r")  # as old spreadsheets end their lines
    assert scan_manifest(folder, folder / "old.csv")[0].fields == {"label": "x"}


def test_long_captions_are_kept_up_to_what_a_json_may_hold(folder: Path) -> None:
    manifest = write_manifest(folder, "file,caption", f"a/1.wav,{'x' * 200_000}")
    assert scan_manifest(folder, manifest)[0].fields == {"caption": "x" * 200_000}
    with pytest.raises(ValueError, match=r"line 2 of .*: expected at most 990000 bytes for one file, .*'caption'"):
        scan_manifest(folder, write_manifest(folder, "file,caption", f"a/1.wav,{'x' * 1_000_000}"))


def test_the_encoding_of_a_manifest_is_utf8_or_utf16_with_its_mark(folder: Path) -> None:
    lines = ["file,label", "a/1.wav,é"]
    (source,) = scan_manifest(folder, write_manifest(folder, *lines, encoding="utf-16"))
    assert source.fields == {"label": "é"}
    manifest = write_manifest(folder, *lines, encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"line 2 of .*manifest.csv: expected text in UTF-8, got the byte 0xe9. .*iconv"
    ):
        scan_manifest(folder, manifest)


@pytest.mark.parametrize("split", [["train"], 1, True, {"a": 1}])
def test_a_split_that_is_no_text_is_refused_with_its_line(folder: Path, split: Any) -> None:
    (folder / "list.jsonl").write_text(json.dumps({"file": "a/1.wav", "split": split}))
    with pytest.raises(ValueError, match=r"line 1 of .*: split: expected one of train, val, "):
        scan_manifest(folder, folder / "list.jsonl")


# --- folders as they are found


def test_what_cannot_be_read_is_refused_by_name_and_the_rest_is_packed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "annex.flac").symlink_to("../.git/annex/objects/x.flac")
    (folder / "notes.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.wav")
    (folder / "zeros.wav").symlink_to("/dev/zero")
    (folder / "a" / "closed").mkdir()
    real = os.scandir

    def closed(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    report = pack(scan_folder(folder, True), tmp_path / "out", val_fraction=0.3)
    assert dict(report.refused) == {
        "loop": "cannot be read: Too many levels of symbolic links",
        "pipe.wav": "is neither a file nor a folder, but a pipe, a socket or a device",
        "zeros.wav": "is neither a file nor a folder, but a pipe, a socket or a device",
        "annex.flac": "is a link to a file that is not there: ../.git/annex/objects/x.flac",
        "a/closed": "is a folder that cannot be read: Permission denied",
    }
    assert sum(report.clips.values()) == 12
    monkeypatch.setattr(os, "scandir", lambda path: closed("closed"))
    with pytest.raises(ValueError, match=r"input: .* is a folder that cannot be read: Permission denied"):
        scan_folder(folder, True)


def test_a_label_folder_whose_name_is_not_utf8_has_a_label_that_is(folder: Path, tmp_path: Path) -> None:
    (folder / "a").rename(folder / os.fsdecode(b"caf\xe9"))
    report = pack(scan_folder(folder, True), tmp_path / "out", val_fraction=0.3, picture=True)
    assert report.classes == ["b", "café"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["classes"] == ["b", "café"]


@pytest.fixture
def served(folder: Path, serve: Callable[[Path], str]) -> str:
    """The folder's address on a web server."""
    return serve(folder)


def test_a_folder_on_a_web_server_is_packed_as_a_local_one(
    folder: Path, tmp_path: Path, served: str, clips_of: ClipsOf, encode: Encode, noise: Callable[..., Any]
) -> None:
    (folder / "a" / "deep").mkdir()
    for format in ("mp3", "flac", "ogg"):
        (folder / "a" / f"x.{format}").write_bytes(encode(noise(40_000), 16_000, format.upper()))
    (folder / "a" / "deep" / "01. Intro é.wav").write_bytes((folder / "a" / "1.wav").read_bytes())
    (folder / "a" / "1.json").write_text('{"caption": "dry"}')
    store = RemoteStore(None, retries=0)
    sources = scan_url(served, True, store)
    assert {(source.name, *sorted(source.fields.items())) for source in sources} == {
        (source.name, *sorted(source.fields.items())) for source in scan_folder(folder, True)
    }
    for form in (Form(), Form("flac", sample_rate=22_050, segment_s=0.5)):
        options: dict[str, Any] = {"form": form, "val_fraction": 0.3}
        pack(sources, tmp_path / f"remote_{form.format}", **options, store=store, num_workers=2)
        pack(scan_folder(folder, True), tmp_path / f"local_{form.format}", **options)
        clips = clips_of(tmp_path / f"remote_{form.format}")
        assert clips == clips_of(tmp_path / f"local_{form.format}")
        assert {meta["source"] for _, _, meta in clips.values()} > {f"a/x.{end}" for end in ("mp3", "flac", "ogg")}


def test_a_manifest_names_files_below_a_url(folder: Path, tmp_path: Path, served: str, clips_of: ClipsOf) -> None:
    lines = ["file,split", f"{served}/a/1.wav,train", "./b/../b/2.wav,val", "gone.wav,train"]
    (folder / "list.csv").write_text("\n".join(lines))
    store = RemoteStore(None, retries=0)
    report = pack(scan_manifest(served, f"{served}/list.csv", store), tmp_path / "out", store=store)
    assert clips_of(tmp_path / "out").keys() == {"a/1.wav", "b/2.wav"}
    assert [name for name, _ in report.refused] == ["gone.wav"]
    assert "404" in report.refused[0][1]
    for name in ("http://elsewhere/1.wav", f"{served}x/1.wav", "../1.wav", "/etc/1.wav", f"{served}/a/../../1.wav"):
        (tmp_path / "bad.csv").write_text(f"file\n{name}")
        with pytest.raises(ValueError, match=r"manifest: line 2 of .* names .*, which is outside http://127"):
            scan_manifest(served, tmp_path / "bad.csv", store)


def test_a_server_that_fails_stops_the_run_and_refuses_nothing(folder: Path, tmp_path: Path, served: str) -> None:
    store = RemoteStore(None, retries=0, stall_s=0.5)
    sources = scan_url(served, True, store)
    broken = [Source(str(source.path).replace(served, "http://127.0.0.1:9"), source.name) for source in sources]
    with pytest.raises(ValueError, match=r"input: .*connection.*Repeat the command to continue from here"):
        pack(broken, tmp_path / "out", store=store)
    assert not (tmp_path / "out").exists()


def test_a_bucket_is_packed_as_a_local_folder(
    folder: Path, tmp_path: Path, clips_of: ClipsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'audio_diffusion[dev]'")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'audio_diffusion[dev]'")
    import boto3

    names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="audio")
        for path in folder.rglob("*.wav"):
            client.put_object(Bucket="audio", Key=f"in/{path.relative_to(folder)}", Body=path.read_bytes())
        store = RemoteStore(None, retries=0, storage_options={"s3": {"endpoint_url": address}})
        pack(scan_url("s3://audio/in/", True, store), tmp_path / "remote", val_fraction=0.3, store=store)
        with pytest.raises(ValueError, match=r"input: "):
            scan_url("s3://nowhere/in", True, store)
        with pytest.raises(ValueError, match=r"input: no audio .* below 's3://audio/empty'"):
            scan_url("s3://audio/empty", True, store)
    finally:
        server.stop()
    pack(scan_folder(folder, True), tmp_path / "local", val_fraction=0.3)
    assert clips_of(tmp_path / "remote") == clips_of(tmp_path / "local")


@pytest.mark.parametrize("key", ["lable", "spilt", "captoin", "Label", "label "])
def test_a_misspelt_key_of_a_sidecar_is_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "x.wav").touch()
    (tmp_path / "x.json").write_text(json.dumps({key: "train", "captions": ["a", "b"], "label_id": 3, "id": "y"}))
    (source,) = scan_folder(tmp_path, False)
    near = {"spilt": "split", "captoin": "caption"}.get(key, "label")
    assert source.problem.startswith(f"its sidecar x.json cannot be used: key {key!r}: did you mean {near!r}?")
    (tmp_path / "x.json").write_text('{"captions": ["a"], "label": "b", "labels": "b c", "label_id": 3}')
    assert scan_folder(tmp_path, False)[0].problem == ""
