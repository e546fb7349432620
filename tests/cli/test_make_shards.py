"""make_shards.py as a user runs it: a folder becomes shards, and every mistake one line."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.cli.make_shards import next_command
from audio_diffusion.packing.pack import pack, scan_folder

ROOT = Path(__file__).parents[2]
Packed = tuple[Path, subprocess.CompletedProcess]
Command = Callable[..., tuple[int, str, str]]


LOADING = "audio_diffusion: loading ..\n"  # the first line of each program on stderr


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """command(folder, *arguments) -> (status, output, errors) of the script, run in this process: that is faster."""

    def ran(cwd: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # which the script sets for its process
        monkeypatch.setattr(sys, "argv", ["make_shards.py", *arguments])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / "make_shards.py"), run_name="__main__")
            status = 0
        except SystemExit as stopped:
            status = stopped.code  # type: ignore[assignment]
        output, errors = capfd.readouterr()
        return status, output, errors.removeprefix(LOADING)

    return ran


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, drum_folder: Path, run_program: Callable) -> Packed:
    """A folder with drums/, 2024/ made of it, and what was printed."""
    cwd = tmp_path_factory.mktemp("user")
    shutil.copytree(drum_folder, cwd / "drums")
    (cwd / "drums" / "tom" / os.fsdecode(b"caf\xe9.flac")).write_text("no audio")
    options = ("val_fraction=0.25", "shard_mb=0.1", "num_workers=2")
    return cwd, run_program(cwd, "make_shards.py", "input=drums", "output=2024", *options)


def test_a_folder_becomes_the_shards_that_the_packer_makes(packed: Packed, tmp_path: Path) -> None:
    cwd, done = packed
    assert done.returncode == 0, done.stderr
    pack(scan_folder(cwd / "drums", True), tmp_path, val_fraction=0.25, shard_bytes=100_000)
    made = {path.name: path.read_bytes() for path in (cwd / "2024").iterdir()}
    assert made.pop("manifest.png").startswith(b"\x89PNG")
    assert made == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in cwd.iterdir()} == {"drums", "2024"}  # and nothing else is left behind


def test_what_came_of_it_is_said(packed: Packed) -> None:
    cwd, done = packed
    manifest = json.loads((cwd / "2024" / "manifest.json").read_text())
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for split in ("train", "val", "test"):
        assert f"{split} {manifest['clips'][split]} clips {manifest['seconds'][split] / 3600:.4f} h" in lines
    assert "classes: clap, hat, kick, snare, tom" in lines
    assert "left out, with reasons in 2024/refused.csv: 1, e.g." in lines
    assert r"'tom/caf\udce9.flac': cannot be decoded: Format not recognised." in lines
    assert lines[-2] == f"{len(manifest['shards'])} shards in 2024/"
    assert lines[-1] == "next: python train.py experiment=drums data.train=2024 name=2024"
    assert re.search(r"looking: 41/41 files, 0\.01/0\.01 h, \d+ x real time, in 0:\d\d:\d\d\n", done.stdout)
    assert re.search(r"packing: 40/40 files, 0\.01/0\.01 h, \d+ x real time, in 0:\d\d:\d\d\n", done.stdout)
    assert len(lines) < 15  # a log stays calm
    assert done.stderr == LOADING


def test_a_second_run_into_the_same_folder_is_refused(packed: Packed, command: Command) -> None:
    cwd, _ = packed
    before = {path.name: path.read_bytes() for path in (cwd / "2024").iterdir()}
    status, _, errors = command(cwd, "input=drums", "output=2024")
    assert status == 2
    assert errors == "error: output: '2024' already holds shards; remove them or choose another folder\n"
    assert {path.name: path.read_bytes() for path in (cwd / "2024").iterdir()} == before


def test_a_manifest_decides_where_there_is_one(packed: Packed, command: Command) -> None:
    cwd, _ = packed
    lines = [
        "file,split,label",
        "tom/tom_0000.wav,train,low",
        "hat/hat_0001.wav,val,high",
        "kick/kick_0002.wav,test,low",
    ]
    (cwd / "list.csv").write_text("\n".join(lines))
    status, output, errors = command(cwd, "input=drums", "output=chosen", "manifest=list.csv", "num_workers=1")
    assert (status, errors) == (0, "")
    manifest = json.loads((cwd / "chosen" / "manifest.json").read_text())
    assert manifest["clips"] == {"train": 1, "val": 1, "test": 1}
    assert manifest["classes"] == ["high", "low"]
    assert "left out" not in output


def test_shards_are_verified_with_an_exit_status(packed: Packed, command: Command) -> None:
    cwd, _ = packed
    status, output, errors = command(cwd, "verify=2024", "num_workers=1")
    assert (status, errors) == (0, "")
    assert re.fullmatch(r"verifying: (\d+)/\1 shards, .*\n\1 shards, 40 clips, 0.0057 h: no problems\n", output)
    shutil.copytree(cwd / "2024", cwd / "damaged")
    (cwd / "damaged" / "val-000000.tar").unlink()
    (cwd / "damaged" / "train-000000.tar").write_bytes(b"<html>")
    status, output, errors = command(cwd, "verify=damaged", "num_workers=2")
    assert (status, errors) == (1, "")
    lines = output.splitlines()
    assert "val-000000.tar: expected, as the manifest lists it, found no such file" in lines
    assert any(line.startswith("train-000000.tar: size in bytes: expected ") for line in lines)
    assert lines[-1].endswith(f": {len(lines) - 2} problems")


def test_all_that_is_made_of_the_audio_is_told(
    tmp_path: Path, encode: Callable[..., bytes], noise: Callable[..., Any], command: Command
) -> None:
    (tmp_path / "in").mkdir()
    samples = {"x": noise(40_000), "loud": 3 * noise(16_000), "zero": 0 * noise(16_000), "y": noise(19_200)}
    for name, data in samples.items():
        (tmp_path / "in" / f"{name}.wav").write_bytes(encode(data, 16_000, subtype="FLOAT"))
    (tmp_path / "list.jsonl").write_text(
        "\n".join(json.dumps({"file": f"{n}.wav", "split": "val" if n == "y" else "train"}) for n in samples)
    )
    status, output, errors = command(
        tmp_path, "input=in", "output=out", "manifest=list.jsonl", "format=flac", "segment_s=0.6", "silence_db=-60",
        "sample_rate=16000", "channels=2", "num_workers=2",
    )  # fmt: skip
    assert (status, errors) == (0, "")
    for line in (
        "silent: 2 pieces, 1.0 s, left out",
        "rests of less than half a piece: 1, 0.1 s, left out",
        "left out, with reasons in out/refused.csv: 1, e.g.",
        "    'zero.wav': silent (below -60 dBFS rms): 2 pieces, 1.000 s, at 0, 0.6 s",
        "a picture of durations, levels and classes: out/manifest.png",
    ):
        assert line in output.splitlines()
    assert re.search(r"over full scale, clipped: \d+ samples in 2 clips", output)
    assert command(tmp_path, "verify=out", "num_workers=1")[0] == 0


def test_ctrl_c_says_how_to_go_on(
    drum_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audio_diffusion.packing.pack.prepare", interrupted)
    arguments = (f"input={drum_folder}", "output=out", "num_workers=1")
    status, output, errors = command(tmp_path, *arguments)
    assert (status, errors) == (130, "")
    assert output.endswith("stopped; repeat the command to continue from here\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["input=nowhere"], "input: expected a folder of audio, got 'nowhere'"),
        (["input=drums", "manifest=none.csv"], "manifest: 'none.csv' cannot be read: No such file or directory"),
        (
            ["input=drums", "output=drums/a.wav"],
            "output: expected a folder, made if there is none, but 'drums/a.wav' is",
        ),
        (["input=drums", "labels=file"], "labels: expected folder or none, got 'file'"),
        (
            ["input=drums", "val_fraction=2"],
            "val_fraction: expected at least 0, which holds out nothing, and less than 1",
        ),
        (["input="], "input: expected a folder or a URL, got nothing"),
        (["input=drums", "output="], "output: expected a folder or a URL, got nothing"),
        (["input=drums", "manifest="], "manifest: expected a csv or jsonl, got nothing"),
        (["verify="], "verify: expected a folder or a URL, got nothing"),
        (["input=drums", "val_fraction=tenth"], "val_fraction: expected a number, got 'tenth'"),
        (["input=drums", "shard_mb=null"], "shard_mb: expected a number, got None"),
        (["input=drums", "shard_mb=0"], "shard_bytes: expected at least 1, got 0"),
        (["input=drums", "num_workers=true"], "num_workers: expected a whole number, got True"),
        (["input=drums", "sample_rate=16e3"], "sample_rate: expected a whole number, got 16000.0"),
        (["input=drums", "format=mp3"], "format: expected keep, flac, pcm16, got 'mp3'"),
        (["input=drums", "segment_s=10"], "segment_s: format=keep leaves the audio as it is; choose format=flac"),
        (["input=drums", "lufs=3", "format=flac"], "lufs: expected -70 to 0, got 3"),
        (["input=ftp://host/folder"], "input: expected a local path or an address that begins with one of http://"),
        (["input=drums", "store.block_bytes=0"], "store.block_bytes: expected more than 0, got 0"),
        (["verify=nowhere"], "verify: expected a folder of shards, local or a URL, got 'nowhere'"),
        (["input=drums", "val_fracton=0.2"], "val_fracton: there is no such option. Did you mean 'val_fraction'?"),
        ([], "input: must be given: input=VALUE"),
    ],
)
def test_every_mistake_is_one_line(arguments: list[str], problem: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "drums").mkdir()
    (tmp_path / "drums" / "a.wav").touch()
    status, _, errors = command(tmp_path, "output=out", *arguments)
    assert status == 2
    assert errors.startswith(f"error: {problem}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["my folder", "out"], ["my folder", "out", "format=flac"]])
def test_bare_folders_are_answered_with_the_options_for_them(
    words: list[str], tmp_path: Path, command: Command
) -> None:
    status, _, errors = command(tmp_path, *words)
    meant = "did you mean input='my folder' output=out?"
    assert (status, errors.splitlines()[-1]) == (2, f"error: my folder: expected OPTION=VALUE; {meant}")
    status, _, errors = command(tmp_path, "folder")
    assert errors.splitlines()[-1] == "error: folder: expected OPTION=VALUE; did you mean input=folder?"
    status, _, errors = command(tmp_path, "input=a", "b")
    assert errors.splitlines()[-1] == "error: b: expected OPTION=VALUE; did you mean output=b?"
    status, _, errors = command(tmp_path, "input=a", "output=b", "c")
    assert errors.splitlines()[-1] == "error: c: expected OPTION=VALUE, such as format=flac"


SPOKEN = {"classes": ["en", "es"], "durations_s": {"mean": 2.4}, "formats": [{"sample_rate": 16000, "channels": 1}]}
SONGS = {"classes": [], "durations_s": {"mean": 147.0}, "formats": [{"sample_rate": 44100, "channels": 2}]}
HITS = {"classes": ["a"], "durations_s": {"mean": 0.4}, "formats": [{"sample_rate": 44100, "channels": 2}]}
SCENES = {"classes": ["rain"], "durations_s": {"mean": 10.0}, "formats": [{"sample_rate": 44100, "channels": 1}]}
TALKS = {"classes": [], "durations_s": {"mean": 300.0}, "formats": [{"sample_rate": 16000, "channels": 1}]}


@pytest.mark.parametrize(
    ("manifest", "experiment"),
    [(SPOKEN, "speech"), (SONGS, "music"), (HITS, "oneshots"), (SCENES, "environment"), (TALKS, "speech")],
)
def test_the_experiment_for_what_was_packed_is_named(manifest: dict[str, Any], experiment: str) -> None:
    command = next_command(manifest, Path("data") / "my set")
    assert command == f"python train.py experiment={experiment} 'data.train=data/my set' name=my_set"


def test_one_recording_is_packed_and_all_that_is_decided_said(
    tmp_path: Path, encode: Callable[..., bytes], noise: Callable[..., Any], command: Command
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(encode(0 * noise(32_000), 16_000))
    status, output, errors = command(tmp_path, "input=in", "output=out", "num_workers=1")
    assert (status, errors) == (0, "")
    for line in (
        "train       1 clip      0.0005 h",
        "held out because there are few files: the last 10 % of 'a.wav'; they are cut, and therefore encoded again, "
        "as 16-bit FLAC",
        "2 of 2 clips are digital silence",
        "2 shards in out/",
    ):
        assert line in output.splitlines()
    assert output.startswith("looking: 1/1 file, 0.00/0.00 h, in 0:00:0")  # and no rate of nothing
    status, alone, errors = command(tmp_path, "input=in/a.wav", "output=alone", "num_workers=1")  # without a folder
    assert (status, errors) == (0, "")
    assert alone.splitlines()[-1] == "next: python train.py experiment=oneshots data.train=alone name=alone"
    for name in ("train-000000.tar", "val-000000.tar"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    (tmp_path / "list.csv").write_text("file\na.wav\n")
    status, _, errors = command(tmp_path, "input=list.csv", "output=none")
    assert status == 2
    assert "got the file 'list.csv'. A list of files is given beside their folder" in errors


def test_after_captions_the_next_command_uses_them(
    tmp_path: Path, encode: Callable[..., bytes], noise: Callable[..., Any], command: Command
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.wav").write_bytes(encode(noise(1000, seed=i), 16_000))
        (tmp_path / "in" / f"{i}.json").write_text('{"caption": "rain"}')
    _, output, _ = command(tmp_path, "input=in", "output=all", "num_workers=1")
    assert output.splitlines()[-1].endswith("data.train=all name=all condition=caption")
    (tmp_path / "in" / "0.json").unlink()
    _, output, _ = command(tmp_path, "input=in", "output=some", "num_workers=1")
    assert "captions: 2 files of 3 have one; condition=caption leaves out the rest" in output.splitlines()
    assert output.splitlines()[-1].endswith("data.train=some name=some")


def test_on_a_full_disk_it_is_said_where_and_how_much_is_needed(
    tmp_path: Path, encode: Callable[..., bytes], noise: Callable[..., Any], command: Command, mount: Callable
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.wav").write_bytes(encode(noise(400_000, seed=i), 16_000))
    mount(tmp_path / "out", "size=2m")
    arguments = ("input=in", "output=out", "num_workers=1", "shard_mb=0.5")
    status, _, errors = command(tmp_path, *arguments)
    assert status == 2
    full = r"error: output: the disk is full: \d\.\d MB are free in out, \d\.\d MB are needed\. Finished"
    assert re.match(full, errors)
    assert errors.count("\n") == 1
    subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path / "out")], check=True)
    status, output, _ = command(tmp_path, *arguments)
    assert status == 0
    assert output.startswith("packing")
    assert "resumed after" in output
