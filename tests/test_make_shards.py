"""make_shards.py as a user runs it: a folder becomes shards, and every mistake one line."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audio_diffusion.packing.pack import pack, scan_folder

ROOT = Path(__file__).parents[1]


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "make_shards.py"), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, drum_folder: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """A folder with drums/, 2024/ made of it, and what was printed."""
    cwd = tmp_path_factory.mktemp("user")
    shutil.copytree(drum_folder, cwd / "drums")
    (cwd / "drums" / "tom" / os.fsdecode(b"caf\xe9.flac")).write_text("no audio")
    return cwd, run(cwd, "input=drums", "output=2024", "val_fraction=0.25", "shard_mb=0.1", "num_workers=2")


def test_a_folder_becomes_the_shards_that_the_packer_makes(
    packed: tuple[Path, subprocess.CompletedProcess], tmp_path: Path
) -> None:
    cwd, done = packed
    assert done.returncode == 0, done.stderr
    pack(scan_folder(cwd / "drums", True), tmp_path, val_fraction=0.25, shard_bytes=100_000)
    made = {path.name: path.read_bytes() for path in (cwd / "2024").iterdir()}
    assert made.pop("manifest.png").startswith(b"\x89PNG")
    assert made == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in cwd.iterdir()} == {"drums", "2024"}  # and nothing else is left behind


def test_what_came_of_it_is_said(packed: tuple[Path, subprocess.CompletedProcess]) -> None:
    cwd, done = packed
    manifest = json.loads((cwd / "2024" / "manifest.json").read_text())
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for split in ("train", "val", "test"):
        assert f"{split} {manifest['clips'][split]} clips {manifest['seconds'][split] / 3600:.4f} h" in lines
    assert "classes: clap, hat, kick, snare, tom" in lines
    assert "left out, named with the reasons in 2024/refused.csv: 1, e.g." in lines
    assert r"'tom/caf\udce9.flac': cannot be decoded: Format not recognised." in lines
    assert lines[-1] == f"{len(manifest['shards'])} shards in 2024/ -> python train.py data.train=2024"
    assert re.search(r"looking: 41/41 files, 0\.01/0\.01 h, \S+ h/s, in 0:\d\d:\d\d\n", done.stdout)
    assert re.search(r"packing: 40/40 files, 0\.01/0\.01 h, \S+ h/s, in 0:\d\d:\d\d\n", done.stdout)
    assert len(lines) < 15  # a log stays calm
    assert done.stderr == ""


def test_a_second_run_into_the_same_folder_is_refused(packed: tuple[Path, subprocess.CompletedProcess]) -> None:
    cwd, _ = packed
    before = {path.name: path.read_bytes() for path in (cwd / "2024").iterdir()}
    done = run(cwd, "input=drums", "output=2024")
    assert done.returncode == 2
    assert done.stderr == "error: output: '2024' already holds shards; remove them or choose another folder\n"
    assert {path.name: path.read_bytes() for path in (cwd / "2024").iterdir()} == before


def test_a_manifest_decides_where_there_is_one(packed: tuple[Path, subprocess.CompletedProcess]) -> None:
    cwd, _ = packed
    lines = [
        "file,split,label",
        "tom/tom_0000.wav,train,low",
        "hat/hat_0001.wav,val,high",
        "kick/kick_0002.wav,test,low",
    ]
    (cwd / "list.csv").write_text("\n".join(lines))
    done = run(cwd, "input=drums", "output=chosen", "manifest=list.csv")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((cwd / "chosen" / "manifest.json").read_text())
    assert manifest["clips"] == {"train": 1, "val": 1, "test": 1}
    assert manifest["classes"] == ["high", "low"]
    assert "left out" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["input=nowhere"], "input: expected a folder of audio, got 'nowhere'"),
        (["input=drums", "manifest=none.csv"], "[Errno 2] No such file or directory: 'none.csv'"),
        (["input=drums", "labels=file"], "labels: expected folder or none, got 'file'"),
        (["input=drums", "val_fraction=2"], "val_fraction: expected between 0 and 1, got 2"),
        (["input=drums", "val_fraction=tenth"], "val_fraction: expected a number, got 'tenth'"),
        (["input=drums", "shard_mb=null"], "shard_mb: expected a number, got None"),
        (["input=drums", "shard_mb=0"], "shard_bytes: expected at least 1, got 0"),
        (["input=drums", "num_workers=true"], "num_workers: expected a whole number, got True"),
        (["input=drums", "sample_rate=16e3"], "sample_rate: expected a whole number, got 16000.0"),
        (["input=drums", "format=mp3"], "format: expected keep, flac, pcm16, got 'mp3'"),
        (["input=drums", "segment_s=10"], "segment_s: format=keep leaves the audio as it is; choose format=flac"),
        (["input=drums", "lufs=3", "format=flac"], "lufs: expected -70 to 0, got 3"),
        (["input=ftp://host/folder"], "input: expected a local path or an address that begins with one of http://"),
        (["verify=nowhere"], "verify: expected a folder of shards, local or a URL, got 'nowhere'"),
        (["input=drums", "val_fracton=0.2"], "val_fracton: there is no such option. Did you mean 'val_fraction'?"),
        ([], "Missing mandatory value: input"),
    ],
)
def test_every_mistake_is_one_line(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "drums").mkdir()
    (tmp_path / "drums" / "a.wav").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_shards.py", "output=out", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "make_shards.py"), run_name="__main__")
    assert stopped.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {problem}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
