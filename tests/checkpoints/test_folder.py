"""Checkpoints on the disk: a writer killed at every point, files that went bad afterwards, and what is kept."""

import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from audio_diffusion.checkpoints import files
from audio_diffusion.checkpoints.files import HashingFile, record_of
from audio_diffusion.checkpoints.folder import (
    Keep,
    all_in,
    newest_verified,
    path_of,
    problem_of,
    recover,
    step_of,
    write,
)
from audio_diffusion.checkpoints.manifest import Manifest, hash_of
from audio_diffusion.cli.config import ConfigError
from audio_diffusion.inference import checkpoint_reader


def save(folder: Path, step: int, value: float | None = None) -> Path:
    """A checkpoint whose tensors hold ``value``, by default the step."""
    content = {"x": torch.full((300,), float(step) if value is None else value), "global_step": step}
    path = path_of(folder, step)
    write(path, partial(torch.save, content), lambda files: Manifest(step, files, 1, 4, None, hash_of(None)))
    return path


def value_in(path: Path) -> float:
    return torch.load(path, weights_only=True)["x"][0].item()


class Death:
    """Kills the process at the ``at``-th thing done to the disk: part of a write, a sync, a name given or taken."""

    def __init__(self, at: int):
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function):
        def dying(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return dying

    def install(self) -> None:
        write_all = HashingFile.write

        def halved(this, data):
            view = memoryview(data).cast("B")
            self.step()
            half = write_all(this, view[: len(view) // 2])
            self.step()
            return half + write_all(this, view[len(view) // 2 :])

        HashingFile.write = halved  # type: ignore[method-assign]
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self.before(getattr(os, name)))
        for name in ("replace", "unlink"):
            setattr(Path, name, self.before(getattr(Path, name)))


def killed_at(at: int, action) -> bool:
    """Runs ``action`` in a process that dies at its ``at``-th point; False once that lies behind its end."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Death(at).install()
            action()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.slow
def test_a_writer_killed_at_any_point_leaves_the_last_good_one_or_the_new_one(tmp_path):
    seen, at = set(), 0
    while True:
        folder = tmp_path / str(at)
        first = save(folder, 1)
        killed = killed_at(at, lambda folder=folder: save(folder, 2))
        assert problem_of(first) is None
        before = newest_verified(folder).path
        recover(folder)
        path = newest_verified(folder).path
        assert step_of(path) >= step_of(before)  # completed, or what there was
        assert value_in(path) == step_of(path)
        assert not list(folder.glob(".*"))
        seen.add((step_of(before), step_of(path)))
        assert value_in(save(folder, 2)) == 2  # and the next life is not in the way of the dead one
        assert recover(folder) == []
        at += 1
        if not killed:
            break
    assert at > 50, "the writes were not cut in halves"
    assert seen == {(1, 1), (1, 2), (2, 2)}


@pytest.mark.slow
def test_a_writer_killed_while_it_replaces_a_checkpoint_of_the_same_step(tmp_path):
    """As after a fall-back, when a step is trained again: old, new, or neither, but never a mixture taken for good."""
    at, killed = 0, True
    while killed:
        folder = tmp_path / str(at)
        save(folder, 1)
        save(folder, 2, value=-2.0)
        killed = killed_at(at, lambda folder=folder: save(folder, 2, value=2.0))
        recover(folder)
        path = newest_verified(folder).path
        assert (step_of(path), value_in(path)) in ((2, -2.0), (2, 2.0))
        at += 7 if at < 70 else 1  # names are given at the end, and all of that is tried
    assert value_in(path) == 2.0


def test_a_kill_while_old_ones_are_removed_leaves_two_good_ones(tmp_path):
    at, killed = 0, True
    while killed:
        folder = tmp_path / str(at)
        for step in (1, 2, 3, 4):
            save(folder, step)
        killed = killed_at(at, lambda folder=folder: Keep(2).prune(folder, 4))
        for step in (3, 4):
            assert problem_of(path_of(folder, step)) is None
        Keep(2).prune(folder, 4)
        assert [step_of(path) for path in all_in(folder)] == [3, 4]
        assert len(list(folder.iterdir())) == 4
        at += 1
    assert at >= 5


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


BROKEN = {
    "cut off": (cut, r"has \d+ bytes, of \d+ \(a cut-off write\)"),
    "empty": (lambda path: path.write_bytes(b""), "has 0 bytes, of"),
    "a flipped bit": (flip, r"sha256 differs \(a flipped bit or a cut-off write\)"),
    "gone": (Path.unlink, "No such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "has|Is a directory"),
    "no manifest": (lambda path: path.with_suffix(".json").unlink(), "no manifest beside it"),
    "an empty manifest": (lambda path: path.with_suffix(".json").write_bytes(b""), "is not a manifest"),
    "a cut-off manifest": (lambda path: cut(path.with_suffix(".json")), "is not a manifest"),
    "a manifest of other things": (lambda path: path.with_suffix(".json").write_text("[1]"), "is not a manifest"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_is_passed_over_and_said(tmp_path, what):
    damage, reason = BROKEN[what]
    folder = tmp_path / "checkpoints"
    for step in (8, 9, 10):
        save(folder, step)
    os.utime(path_of(folder, 8))  # the newest by time: it does not count
    damage(path_of(folder, 10))
    choice = newest_verified(folder)
    assert choice.path == path_of(folder, 9)
    (line,) = choice.lines()
    assert re.search(reason, line), line
    assert line.startswith("step_00000010.")
    assert line.endswith("; falling back to step_00000009.ckpt")
    assert checkpoint_reader.find(str(tmp_path)) == path_of(folder, 9)  # what sample.py and evaluate.py take


def test_a_run_in_which_none_is_good_is_an_error_that_names_each(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1), save(folder, 2)
    flip(path_of(folder, 1)), cut(path_of(folder, 2))
    with pytest.raises(ConfigError, match=r"none of them is valid:\n.*step_00000002\.ckpt.*\n.*step_00000001\.ckpt.*"):
        checkpoint_reader.find(str(tmp_path))


def test_a_file_that_is_named_is_verified_where_it_has_a_manifest(tmp_path, caplog):
    path = save(tmp_path, 1)
    assert checkpoint_reader.find(str(path)) == path
    assert not caplog.records
    path.with_suffix(".json").rename(tmp_path / "kept")
    assert checkpoint_reader.find(str(path)) == path
    assert "could not be verified" in caplog.text
    (tmp_path / "kept").rename(path.with_suffix(".json"))
    flip(path)
    with pytest.raises(ConfigError, match="sha256 differs"):
        checkpoint_reader.find(str(path))


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path, name):
    path = save(tmp_path / "checkpoints", 1)
    (tmp_path / "outside").write_bytes(b"x")
    manifest = path.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"step_00000001.ckpt"', f'"{name}"'))
    assert "lies outside its folder" in problem_of(path)


def test_a_checkpoint_may_be_a_folder_of_files(tmp_path):
    """The shape of sharded ones: the same manifest, of several files."""
    path = path_of(tmp_path, 3)
    path.mkdir()
    for rank in (0, 1):
        (path / f"{rank}.distcp").write_bytes(bytes([rank]) * 1000)
    records = {f"{path.name}/{file.name}": record_of(file) for file in path.iterdir()}
    manifest = path.with_suffix(".json")
    manifest.write_bytes(Manifest(3, records, 2, 4, None, hash_of(None)).to_json())
    assert newest_verified(tmp_path).path == path
    save(tmp_path, 4), save(tmp_path, 5)
    flip(path / "1.distcp")
    assert "1.distcp: sha256 differs" in problem_of(path)
    Keep(2).prune(tmp_path, 5)
    assert not path.exists()


def test_a_write_that_reads_back_as_something_else_is_a_failure(tmp_path, monkeypatch):
    save(tmp_path, 1)
    fsync = os.fsync

    def lossy(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".ckpt.part"):
            os.pwrite(descriptor, b"\xff", 100)
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", lossy)
    with pytest.raises(OSError, match=r"read back after writing: .*sha256 differs"):
        save(tmp_path, 2)
    assert newest_verified(tmp_path).path == path_of(tmp_path, 1)


def test_nothing_is_written_to_tmpdir(tmp_path, monkeypatch):
    full = tmp_path / "full"
    full.mkdir(mode=0o500)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(full))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._get_default_tempdir", lambda *args: pytest.fail("asked for TMPDIR"))
    save(tmp_path / "checkpoints", 1)
    assert list(full.iterdir()) == []


def test_older_ones_stay_while_there_are_too_few_good_ones(tmp_path):
    """Of a version without manifests, say: they go once there are enough that are verified."""
    old = path_of(tmp_path, 1)
    torch.save({}, old)
    save(tmp_path, 2)
    Keep(2).prune(tmp_path, 2)
    assert old.exists()
    save(tmp_path, 3)
    Keep(2).prune(tmp_path, 3)
    assert [step_of(path) for path in all_in(tmp_path)] == [2, 3]


def test_one_that_was_renamed_to_a_later_step_is_not_believed(tmp_path):
    """Its manifest, renamed with it, still names the file it is of, or the step."""
    good = save(tmp_path, 2)
    later = path_of(tmp_path, 9)
    later.write_bytes(good.read_bytes())
    later.with_suffix(".json").write_bytes(good.with_suffix(".json").read_bytes())
    choice = newest_verified(tmp_path)
    assert choice.path == good
    assert choice.problems == [
        "step_00000009.ckpt: its manifest belongs to step_00000002.ckpt; it was renamed: restore that name"
    ]
    manifest = later.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace(good.name, later.name))
    assert problem_of(later) == "step_00000009.ckpt: its manifest says step 2; it was renamed"
