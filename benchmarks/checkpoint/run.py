"""How long training stands still for a checkpoint: ours, written in the background, beside blocking ones; RESULTS.md.

    python benchmarks/checkpoint/run.py                     # 10 M and 100 M parameters; 7 GB of memory and disk
    python benchmarks/checkpoint/run.py 500 --device cuda   # others, in millions

The state is that of a real run: weights, EMA, and Adam's two moments. The ways take turns, each first in every round.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from audio_diffusion.callbacks.checkpoint import AtomicCheckpointIO
from audio_diffusion.checkpoints.folder import newest_verified, path_of

RESULTS = Path(__file__).with_name("RESULTS.md")
TENSORS = 200


def make_state(millions: float, device: str) -> dict[str, Any]:
    """A checkpoint of so many parameters, in float32."""
    size = int(millions * 1e6) // TENSORS
    kinds = [[torch.randn(size, device=device) for _ in range(TENSORS)] for _ in range(4)]
    weights, ema, first, second = kinds
    state = {f"net.{i}": tensor for i, tensor in enumerate(weights)} | {f"ema.{i}": t for i, t in enumerate(ema)}
    moments = {i: {"exp_avg": first[i], "exp_avg_sq": second[i]} for i in range(TENSORS)}
    return {"global_step": 0, "state_dict": state, "optimizer_states": [{"state": moments}], "config": {}}


def spread(values: Sequence[float]) -> str:
    """Median [least to most], in ms."""
    return f"{1000 * statistics.median(values):,.0f} [{1000 * min(values):,.0f} to {1000 * max(values):,.0f}]"


def ways(folder: Path, state: dict[str, Any]) -> dict[str, Callable[[int], tuple[float, float]]]:
    """name -> save(step) -> seconds that training waits, seconds until the checkpoint is written."""

    def lightning(step: int) -> tuple[float, float]:
        start = time.perf_counter()
        TorchCheckpointIO().save_checkpoint(state, folder / "lightning.ckpt")
        return (waited := time.perf_counter() - start), waited

    def lightning_async(step: int) -> tuple[float, float]:
        io = AsyncCheckpointIO(TorchCheckpointIO())
        start = time.perf_counter()
        io.save_checkpoint(state, folder / "lightning_async.ckpt")
        waited = time.perf_counter() - start
        io.teardown()
        return waited, time.perf_counter() - start

    ours = AtomicCheckpointIO()

    def background(step: int) -> tuple[float, float]:
        start = time.perf_counter()
        ours.save_checkpoint({**state, "global_step": step}, path_of(folder, step))
        waited = time.perf_counter() - start
        ours.wait()
        written = time.perf_counter() - start
        outcome = ours.take_outcome()
        assert outcome is not None
        assert outcome.error is None, outcome.error
        return waited, written

    def blocking(step: int) -> tuple[float, float]:
        _, written = background(step)
        return written, written

    return {
        "ours, in the background": background,
        "ours, waited for": blocking,
        "Lightning's, in the background": lightning_async,
        "Lightning's": lightning,
    }


def measure(millions: float, device: str, repeats: int, folder: Path) -> list[str]:
    """Rows of the table."""
    state = make_state(millions, device)
    saves = ways(folder, state)
    names = list(saves)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats + 1):  # the first is not counted
        for i in range(len(names)):
            name = names[(i + repeat) % len(names)]
            os.sync()
            result = saves[name](repeat * len(names) + i + 1)
            if repeat:
                times[name].append(result)
    assert newest_verified(folder).problems == []
    size = sum(f.stat().st_size for f in folder.glob("step_*.ckpt")) / len(list(folder.glob("step_*.ckpt"))) / 1e9
    return [
        f"| {millions:g} M ({size:.2f} GB) | {name} | {spread([t[0] for t in times[name]])} | "
        f"{spread([t[1] for t in times[name]])} |"
        for name in names
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("millions", nargs="*", type=float, default=[10, 100])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="on the file system to be measured; left out: a temporary folder")
    options = parser.parse_args()
    rows: list[str] = []
    for millions in options.millions:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            rows += measure(millions, options.device, options.repeats, folder)
        finally:
            shutil.rmtree(folder)
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    RESULTS.write_text(
        f"""# How long training stands still for a checkpoint

`python benchmarks/checkpoint/run.py` writes this page. {on} ({platform.machine()}), torch {torch.__version__}; ms,
median [least to most] of {options.repeats} rounds; the ways take turns. "Waits" is what training loses;
"written" is when the checkpoint is safe. Ours is copied, checked for values that are not finite, hashed, synced to the
disk with its manifest and read back; Lightning's is neither checked nor synced: "written" there means handed to the
page cache. Load average of the 15 minutes before the end: {os.getloadavg()[2]:.0f}, up to 2 of it this program.

| parameters | way | training waits | written |
|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n",
        encoding="utf-8",
    )
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
