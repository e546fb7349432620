"""A run that is stopped at any moment and started again ends as if it had not been stopped."""

import itertools
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.packing import form, journal, pack, prepare, shard_writer
from audio_diffusion.packing.form import Form
from audio_diffusion.packing.sources import Source, scan_folder

ROOT = Path(__file__).parents[2]
Encode = Callable[..., bytes]
OPTIONS: dict[str, Any] = {"val_fraction": 0.3, "shard_bytes": 7_000}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def long(folder: Path, encode: Encode, noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, with a file of many pieces, some of them silent, in parts of 3, and a broken one."""
    monkeypatch.setattr(form, "IN_MEMORY", 3 * 200)
    samples = noise(2_050)
    samples[300:520] = 0
    (folder / "a" / "long.wav").write_bytes(encode(samples, 16_000))
    (folder / "b" / "broken.wav").write_text("no audio")
    return folder


FORM = Form("flac", segment_s=100 / 16_000, silence_db=-60)


class Stop(Exception):
    """Power loss, as far as a test can have it in its own process."""


def stop_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises at the given one of all steps that change what is on the disk."""
    steps = itertools.count()

    def stopping(function: Callable) -> Callable:
        def stepped(*arguments: Any, **options: Any) -> Any:
            if next(steps) == number:
                raise Stop
            return function(*arguments, **options)

        return stepped

    for owner, name in (
        (Path, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "unlink"), (shard_writer.ShardWriter, "add"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, stopping(getattr(owner, name)))


def test_stopped_at_every_single_step_it_ends_as_if_it_had_not_been(long: Path, tmp_path: Path) -> None:
    sources = scan_folder(long, True)
    whole = pack.pack(sources, tmp_path / "whole", form=FORM, **OPTIONS)
    assert len(whole.shards) > 6
    assert whole.manifest["silent"]["pieces"] == 2
    expected, stopped = files_of(tmp_path / "whole"), 0
    for number in itertools.count():
        output = tmp_path / f"out{number}"
        try:
            with pytest.MonkeyPatch.context() as patch:
                stop_at(number, patch)
                pack.pack(sources, output, form=FORM, **OPTIONS)
            break
        except Stop:
            stopped += 1
        finals = {name: data for name, data in files_of(output).items() if not name.startswith(".")}
        tars = {name for name in finals if name.endswith(".tar")}
        assert all(finals[name] == expected[name] for name in tars)  # never half a shard under its name
        if "manifest.json" in finals:
            assert finals.items() == expected.items()
            continue
        report = pack.pack(sources, output, form=FORM, **OPTIONS)
        assert files_of(output) == expected
        assert report.manifest == whole.manifest
        assert report.resumed in (len(tars), len(tars) - 1)
    assert stopped > 50


def test_stopped_again_and_again_it_comes_to_its_end(long: Path, tmp_path: Path) -> None:
    sources = scan_folder(long, True)
    pack.pack(sources, tmp_path / "whole", form=FORM, **OPTIONS)
    for _ in range(100):
        try:
            with pytest.MonkeyPatch.context() as patch:
                stop_at(25, patch)
                pack.pack(sources, tmp_path / "out", form=FORM, **OPTIONS)
            break
        except Stop:
            (tmp_path / "out" / ".train-000000.index.json.1.part").write_text("")  # as another process leaves it
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_what_is_finished_is_not_done_again(long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, done = scan_folder(long, True), []
    real = prepare.prepare
    monkeypatch.setattr(pack, "prepare", lambda form, store, task: done.append(task) or real(form, store, task))
    pack.pack(sources, tmp_path / "whole", form=FORM, **OPTIONS)
    num_tasks = len(done)
    done.clear()
    stopped_run(sources, tmp_path / "out", at=60)
    looked: list[Source] = []
    monkeypatch.setattr(pack, "look", lambda form, store, source: looked.append(source))
    before = len(done)
    report = pack.pack(sources, tmp_path / "out", form=FORM, **OPTIONS)
    assert looked == []
    assert report.resumed > 2
    assert before > 5
    assert num_tasks < len(done) <= num_tasks + 4  # what the shard that was not finished held, and began in


def stopped_run(sources: list[Source], output: Path, at: int = 40) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(at, patch)
        with pytest.raises(Stop):
            pack.pack(sources, output, form=FORM, **OPTIONS)


def test_other_options_are_refused_with_what_to_do(long: Path, tmp_path: Path) -> None:
    sources = scan_folder(long, True)
    stopped_run(sources, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(ValueError, match=r"with format=flac, shard_bytes=7000, not with format=pcm16, shard_"):
        pack.pack(
            sources, tmp_path / "out", form=Form("pcm16", segment_s=100 / 16_000, silence_db=-60),
            val_fraction=0.3, shard_bytes=5_000,
        )  # fmt: skip
    assert files_of(tmp_path / "out") == before
    pack.pack(sources, tmp_path / "out", form=FORM, **OPTIONS, num_workers=2)  # how many work at it is free


@pytest.mark.parametrize("change", ["added", "removed", "changed", "label"])
def test_other_input_is_refused_with_what_to_do(long: Path, tmp_path: Path, change: str) -> None:
    stopped_run(scan_folder(long, True), tmp_path / "out")
    if change == "added":
        shutil.copy(long / "a" / "1.wav", long / "a" / "new.wav")
    elif change == "removed":
        (long / "a" / "1.wav").unlink()
    elif change == "changed":
        os.utime(long / "a" / "1.wav", (1, 1))
    with pytest.raises(ValueError, match=r"other input: files were added, removed or changed since\. Continue with"):
        pack.pack(scan_folder(long, change != "label"), tmp_path / "out", form=FORM, **OPTIONS)


def test_a_finished_shard_that_is_gone_is_missed(long: Path, tmp_path: Path) -> None:
    stopped_run(scan_folder(long, True), tmp_path / "out")
    (tmp_path / "out" / "train-000000.tar").unlink()
    with pytest.raises(
        ValueError, match=r"whose finished shard train-000000.tar is missing or has changed. Remove the folder"
    ):
        pack.pack(scan_folder(long, True), tmp_path / "out", form=FORM, **OPTIONS)


def test_two_runs_do_not_write_to_one_folder(long: Path, tmp_path: Path) -> None:
    sources = sorted(scan_folder(long, True), key=lambda source: source.digest)
    with journal.Journal(tmp_path / "out", sources, {}) as first:
        first.begin(["refused"] * len(sources))
        with pytest.raises(ValueError, match=r"output: another run is writing to '.*out'"):
            journal.Journal(tmp_path / "out", sources, {})


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
def test_the_command_killed_at_several_moments_goes_on(
    drum_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    options = ["format=flac", "sample_rate=22050", "segment_s=0.02", "shard_mb=0.012", "val_fraction=0.25"]
    command = [sys.executable, str(ROOT / "make_shards.py"), f"input={drum_folder}", "num_workers=2", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    output = tmp_path / "out"
    for num_shards in (1, 80):
        with subprocess.Popen([*command, f"output={output}"], env=env, stdout=subprocess.PIPE) as process:
            wait_until(lambda n=num_shards: len(list(output.glob("*.tar"))) >= n or process.poll() is not None)
            workers = children_of(process.pid)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert len(workers) == 2
        wait_until(lambda those=workers: not any(map(is_running, those)), 10)  # none is left behind
        assert not (output / "manifest.json").exists()
    monkeypatch.setattr(sys, "argv", ["make_shards.py", *command[2:], f"output={output}"])
    runpy.run_path(str(ROOT / "make_shards.py"), run_name="__main__")
    assert "resumed after " in capfd.readouterr().out
    form = Form("flac", sample_rate=22_050, segment_s=0.02)
    pack.pack(
        scan_folder(drum_folder, True), tmp_path / "whole", form=form, val_fraction=0.25, shard_bytes=12_000,
        picture=True,
    )  # fmt: skip
    assert files_of(output) == files_of(tmp_path / "whole")
    assert len(list(output.glob("*.tar"))) > 150
