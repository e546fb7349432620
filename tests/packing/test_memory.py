"""A file of hours is packed in the memory that one of seconds takes."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import resource, sys
from pathlib import Path
from audio_diffusion.packing.pack import Form, Source, pack
folder = Path(sys.argv[1])
for name in ("short.wav", "long.wav"):
    sources = [Source(folder / name, name, {"split": "train"}), Source(folder / "v.wav", "v.wav", {"split": "val"})]
    report = pack(sources, folder / name[:-4], form=Form("flac", sample_rate=8000, segment_s=30), num_workers=2)
    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(report.clips["train"], *used)
"""
SECONDS = 2 * 3600
RATE = 16_000


def sparse_wav(path: Path, seconds: int) -> None:
    """Mono, 16 kHz, 16 bits of silence, which take no room on the disk."""
    size = 2 * RATE * seconds
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16,
                         b"data", size)  # fmt: skip
    path.write_bytes(header)
    os.truncate(path, len(header) + size)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units elsewhere")
def test_hours_take_the_memory_of_seconds(tmp_path: Path) -> None:
    for name, seconds in (("v.wav", 1), ("short.wav", 60), ("long.wav", SECONDS)):
        sparse_wav(tmp_path / name, seconds)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    (few, *before), (many, *after) = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert (few, many) == (2, SECONDS // 30)
    whole = 4 * RATE * SECONDS // 1024  # KiB of float32: 460 MB
    for own_and_workers in (0, 1):
        assert after[own_and_workers] - before[own_and_workers] < whole / 8
