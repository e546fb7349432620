"""Members are decoded by our own table: nothing runs, nothing asks for more memory than it has bytes."""

import io
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audio_diffusion.data.order import ClipOrder, Mixture
from audio_diffusion.data.shards.members import MAX_BYTES, MAX_JSON_DEPTH, READERS, read_json, read_npy, read_text
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import ClipReader, Reading

ROOT = Path(__file__).parents[3]


def npy(array: NDArray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def with_header(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">i2"),
        np.array(1.5, dtype=np.float16),
        np.zeros((0, 3), dtype=np.float32),
        np.array([True, False]),
    ],
)
def test_arrays_of_numbers_come_as_float32(array: NDArray) -> None:
    read = read_npy(npy(array))
    assert read.dtype == np.float32
    assert read.shape == array.shape
    assert np.array_equal(read, array.astype(np.float32))


def test_other_versions_of_the_format() -> None:
    array = np.arange(3.0)
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}"
    for version in (1, 2, 3):
        assert np.array_equal(read_npy(with_header(header, array.tobytes(), version)), array)


BAD_NPY = {
    "not one": (b"no array at all", "not in NumPy's format"),
    "empty": (b"", "not in NumPy's format"),
    "objects": (npy(np.array([{}], dtype=object), allow_pickle=True), "contains object, not numbers"),
    "words": (npy(np.array(["a"])), "contains <U1, not numbers"),
    "complex": (npy(np.array([1j])), "contains complex128, not numbers"),
    "cut": (npy(np.arange(9.0))[:-8], "holds 64 bytes, where its header says 72"),
    "bomb": (
        with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}"),
        "holds 0 bytes, where its header says 8000000000000",
    ),
    "negative": (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -2)}"), "header"),
    "code": (with_header("__import__('os').system('true')"), "header that cannot be read"),
    "no shape": (with_header("{'descr': '<f8', 'fortran_order': False}"), "header that cannot be read"),
    "deep": (with_header("(" * 5000), "header that cannot be read"),
    "long header": (with_header(" " * 20_000, version=2), "header that cannot be read"),
    "large": (bytes(MAX_BYTES + 1), f"more than {MAX_BYTES}"),
}


@pytest.mark.parametrize("fault", BAD_NPY)
def test_what_is_no_array_of_numbers_is_refused(fault: str) -> None:
    data, reason = BAD_NPY[fault]
    with pytest.raises(ValueError, match=reason):
        read_npy(data)


def test_json_and_text() -> None:
    assert read_json(memoryview(b'{"a": [1]}')) == {"a": [1]}
    assert read_text("Übung".encode()) == "Übung"
    nested = {depth: b'{"a": ' * depth + b"1" + b"}" * depth for depth in (MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1)}
    assert list(read_json(nested[MAX_JSON_DEPTH])) == ["a"]
    assert len(read_json(b'{"a": [' + b"[]," * 100 + b"{}]}")["a"]) == 101  # many, but not deep
    faults = {
        b"[]": "its json is a list",
        b"[" * 10**5: "nested too deeply",
        nested[MAX_JSON_DEPTH + 1]: "nested too deeply",
        b"{": "cannot be read",
    }
    for text, reason in faults.items():
        with pytest.raises(ValueError, match=reason):
            read_json(text)
    with pytest.raises(ValueError, match="not UTF-8"):
        read_text(b"\xff")


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "code has run")


def test_a_hostile_shard_runs_no_code_and_writes_nothing(
    tmp_path: Path, write_tar: Callable[..., Path], encode: Callable[..., bytes], noise: Callable[..., NDArray]
) -> None:
    canary, good = tmp_path / "canary", encode(noise(100), 16_000)
    evil = pickle.dumps(Canary(canary))
    objects = npy(np.array([Canary(canary)], dtype=object), allow_pickle=True)
    members = [("a.wav", good), ("a.json", evil), ("a.txt", evil), ("a.npy", objects), ("a.e.npy", evil)]
    members += [(f"a.{ending}", evil) for ending in ("pyd", "pkl", "pickle", "pth", "pt", "cls", "ten", "cbor", "npz")]
    members += [("__key__.wav", good), ("../../up.wav", good), ("/tmp/root.wav", good), ("b.wav", evil)]
    (tmp_path / "s").mkdir()
    shards = Shards.open([str(write_tar(tmp_path / "s" / "s.tar", members))])
    assert set(READERS) == {"json", "npy", "txt", "cls"}
    for fields in ([], ["label"], ["txt"], ["npy"], ["e.npy"]):
        order = ClipOrder(shards.num_clips, None)
        reader = ClipReader([shards], Mixture([order], [1], None), 16_000, Reading(fields=fields), None)
        for position in range(order.num_clips):
            reader(position, torch.empty(1, 100))
    assert pickle.loads(pickle.dumps(np.float64(1))) == 1  # pickle itself works here
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["s", "s.index.json", "s.tar"]
    pickle.loads(evil)
    assert canary.read_text() == "code has run"  # the canary can sing


AS_EACH_PROGRAM = """
import importlib, os, sys
from audio_diffusion.cli import startup

for script in sys.argv[1:]:  # each imports webdataset anew, as the program begins
    os.environ.pop("WDS_SECURE", None)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("webdataset", "audio_diffusion")]:
        del sys.modules[name]
    importlib.import_module("audio_diffusion.cli.startup").begin(script)
    importlib.import_module(f"audio_diffusion.cli.{script}")
    print(importlib.import_module("webdataset.utils").enforce_security)
"""


@pytest.mark.slow
def test_webdataset_itself_runs_no_code_in_our_programs() -> None:
    command = [sys.executable, "-c", AS_EACH_PROGRAM, "train", "sample", "evaluate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == 3 * "True\n"
