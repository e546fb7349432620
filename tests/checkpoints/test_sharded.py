"""Checkpoints of shards: whole or not there, and nothing in them runs. On one rank; tests/ranks has several."""

import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta

from audio_diffusion.checkpoints import sharded
from audio_diffusion.checkpoints.folder import all_in, newest_verified, problem_of, recover
from audio_diffusion.checkpoints.manifest import Manifest


@pytest.fixture(scope="module")
def group() -> Iterator[Any]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def content(step: int = 3) -> dict[str, Any]:
    """A checkpoint as training has it."""
    torch.manual_seed(step)
    weights = {
        "net.weight": torch.randn(4, 3),
        "ema.net.weight": torch.randn(4, 3),
        "ema._extra_state": torch.tensor(2),
    }
    moments = {0: {"exp_avg": torch.randn(4, 3), "step": torch.tensor(2.0)}, 1: {"exp_avg": torch.randn(1)}}
    return {
        "global_step": step,
        "config": {"batch_size": 4},
        "state_dict": weights,
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
    }


def describe(files: Any) -> Manifest:
    step = int(Path(next(iter(files))).parts[0][5:13])
    return Manifest(step, files, 1, 4, {}, "")


def save(folder: Path, group: Any, step: int = 3, problem: str | None = None) -> Path:
    checkpoint = folder / f"step_{step:08d}.ckpt"
    sharded.write(checkpoint, *sharded.split(content(step)), problem, describe, group)
    return checkpoint


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_what_is_split_is_joined_again() -> None:
    tensors, rest = sharded.split(content())
    assert not any(isinstance(value, torch.Tensor) for value in [rest["state_dict"], *rest.values()])
    assert equal(sharded.join(tensors, rest), content())


def test_what_is_written_is_verified_and_read_as_it_was(tmp_path: Path, group: Any) -> None:
    checkpoint = save(tmp_path, group)
    assert problem_of(checkpoint) is None
    assert equal(sharded.read(checkpoint), content())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003.ckpt", "step_00000003.json"]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "rest.pt"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, group: Any, name: str, how: str) -> None:
    good, bad = save(tmp_path, group, 3), save(tmp_path, group, 4)
    data = bytearray((bad / name).read_bytes())
    data[len(data) // 2] ^= 1
    if how == "gone":
        (bad / name).unlink()
    else:
        (bad / name).write_bytes(data if how == "flip" else data[:-1])
    choice = newest_verified(tmp_path)
    assert choice.path == good
    assert f"step_00000004.ckpt/{name}" in choice.problems[0]


def test_a_rank_that_cannot_write_leaves_nothing_that_counts(tmp_path: Path, group: Any) -> None:
    good = save(tmp_path, group, 2)
    with pytest.raises(OSError, match=r"rank 0: net\.weight is not finite"):
        save(tmp_path, group, 3, "net.weight is not finite")
    assert all_in(tmp_path) == [good]


def test_a_write_that_was_broken_off_is_cleared_and_one_of_the_same_step_replaced(tmp_path: Path, group: Any) -> None:
    checkpoint = save(tmp_path, group)
    part = tmp_path / ".step_00000004.ckpt.part"
    part.mkdir()
    (part / "__0_0.distcp").write_bytes(b"half")
    (checkpoint / "__0_0.distcp").write_bytes(b"broken")
    assert recover(tmp_path) == [".step_00000004.ckpt.part: removed, left by a writer that was killed"]
    assert problem_of(save(tmp_path, group)) is None


def test_one_killed_before_its_manifest_had_its_name_is_completed(tmp_path: Path, group: Any) -> None:
    checkpoint = save(tmp_path, group)
    manifest = tmp_path / "step_00000003.json"
    manifest.rename(tmp_path / ".step_00000003.json.part")
    assert problem_of(checkpoint) is not None
    recover(tmp_path)
    assert problem_of(checkpoint) is None


class Evil:
    """Unpickled anywhere, it would leave a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.path),)


def test_no_code_in_a_description_is_run(tmp_path: Path, group: Any) -> None:
    checkpoint = save(tmp_path, group)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"it names posix\.mknod, which is not loaded from a file"):
        sharded.read(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_pickled_objects_among_the_tensors_cannot_be_asked_for(tmp_path: Path, group: Any) -> None:
    """What is called "bytes" would be unpickled by torch as anything at all."""
    checkpoint = save(tmp_path, group)
    description = Metadata({"state_dict.x": BytesStorageMetadata()}, None, {}, StorageMeta())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(description))
    with pytest.raises(ValueError, match="BytesStorageMetadata, which is not loaded from a file"):
        sharded.read(checkpoint)


def test_no_file_outside_the_folder_is_read(tmp_path: Path, group: Any) -> None:
    checkpoint = save(tmp_path, group)
    description = pickle.loads((checkpoint / ".metadata").read_bytes())
    description.storage_data[MetadataIndex("x")] = _StorageInfo("../../secret", 0, 1)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(description))
    with pytest.raises(ValueError, match=r"names '\.\./\.\./secret', which lies outside the folder"):
        sharded.read(checkpoint)


@pytest.mark.parametrize("damage", [b"", b"no pickle", pickle.dumps({"a": 1})])
def test_what_is_no_description_is_refused(tmp_path: Path, group: Any, damage: bytes) -> None:
    checkpoint = save(tmp_path, group)
    (checkpoint / ".metadata").write_bytes(damage)
    with pytest.raises(ValueError, match="is not a description of tensors"):
        sharded.read(checkpoint)


def test_one_command_makes_one_file(tmp_path: Path, group: Any, run_program: Callable) -> None:
    def consolidate(source: Path, output: Path) -> subprocess.CompletedProcess:
        program = "src/audio_diffusion/checkpoints/consolidate.py"  # python -m audio_diffusion.checkpoints.consolidate
        return run_program(tmp_path, program, str(source), str(output))

    checkpoint = save(tmp_path / "checkpoints", group)
    output = tmp_path / "one.ckpt"
    done = consolidate(tmp_path, output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{output}: step 3, ")
    assert problem_of(output) is None
    assert equal(torch.load(output, weights_only=True), content())
    (checkpoint / "rest.pt").write_bytes(b"broken")
    refused = consolidate(checkpoint, tmp_path / "two.ckpt")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: source: step_00000003.ckpt/rest.pt: has 6 bytes")
