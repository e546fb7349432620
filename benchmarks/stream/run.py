"""The stream at any size, on indexes without audio, and how well it shuffles; writes RESULTS.md.

    python benchmarks/stream/run.py            # 10^8 clips in 10^5 shards, 1024 ranks of 8 workers; a few minutes

The shards are sparse files of the right size, their indexes real ones; only audio is missing. What a rank does at the
start and per batch is done by the real code, in a process of its own.
"""

import json
import os
import pickle
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import webdataset as wds
from numpy.typing import NDArray

from audio_diffusion.data.order import ClipOrder, Mixture, Positions
from audio_diffusion.data.shards.find import MANIFEST
from audio_diffusion.data.shards.index import ShardIndex, dumps
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import ClipReader, Reading

RESULTS = Path(__file__).with_name("RESULTS.md")
NUM_SHARDS, NUM_RANKS, NUM_WORKERS, PER_RANK = 100_000, 1024, 8, 32
SIZES = (600, 800, 900, 1000, 1000, 1100, 1200, 1400)  # clips a shard, 1000 in the mean
CLIP_BYTES = 400_000  # 10 s of FLAC, 16 kHz stereo or so
REPEATS = 5


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median [least to most]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} to {max(values):.{digits}f}]"


# --- a data set of any size, without audio


def make_dataset(folder: Path, num_shards: int) -> None:
    """Sparse shards, their manifest, and an index beside each (shards of one size share theirs)."""
    listed = []
    for size in SIZES:
        keys = [f"some_clip_of_a_folder_{i:06d}_{i:012x}" for i in range(size)]
        places = [(512 + i * CLIP_BYTES, CLIP_BYTES - 1536) for i in range(size)]
        meta = [((i + 1) * CLIP_BYTES - 512, 200) for i in range(size)]
        same = ([441_000] * size, [44_100] * size, [2] * size, [f"{i:064x}" for i in range(size)])
        index = ShardIndex("", (size + 1) * CLIP_BYTES, keys, places, {"json": meta}, *same, [])
        (folder / f"{size}.index").write_text(dumps(index), encoding="utf-8")
    for number in range(num_shards):
        size, name = SIZES[number % len(SIZES)], f"train-{number:06d}"
        with open(folder / f"{name}.tar", "wb") as file:
            file.truncate((size + 1) * CLIP_BYTES)
        os.link(folder / f"{size}.index", folder / f"{name}.index.json")
        num_bytes = (size + 1) * CLIP_BYTES
        listed.append({"name": f"{name}.tar", "split": "train", "clips": size, "bytes": num_bytes, "sha256": "0" * 64})
    for path in folder.glob("*.index.json"):  # not older than the shards
        os.utime(path)
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "shards": listed}), encoding="utf-8")


def resident_mib() -> float:
    """Memory of this process, MiB."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def one_rank(folder: str) -> dict[str, float]:
    """What a rank and one of its workers do: start, seek to a far position, make batches."""
    before, start = resident_mib(), time.perf_counter()
    shards = Shards.open([folder])
    mixture = Mixture([ClipOrder(shards.num_clips, 0)], [1], 0)
    reader = ClipReader([shards], mixture, 16_000, Reading(), 0)
    figures = {"start_s": time.perf_counter() - start}
    figures["rank_mib"] = resident_mib() - before
    figures["sizes_s"] = timed(shards.check_sizes)
    figures["pickle_mb"] = len(pickle.dumps(reader)) / 1e6
    rng = random.Random(os.getpid())
    position = rng.randrange(50 * mixture.num_clips)
    figures["seek_ms"] = 1e3 * timed(lambda: mixture.locate(position))

    positions = Positions(mixture, PER_RANK, 40, rng.randrange(NUM_RANKS), NUM_RANKS, position)
    batches, opened = iter(positions), []
    cpu = time.process_time()
    made = [next(batches) for _ in range(20)]
    figures["deal_ms"] = 1e3 * (time.process_time() - cpu) / len(made)
    cpu = time.process_time()
    for batch in made:
        located = [mixture.locate(p)[2] for p in batch]
        opened.append(len(set(located)))
        for shard in located:
            shards.index(shard)
    figures["index_ms"] = 1e3 * (time.process_time() - cpu) / len(made)
    figures["worker_mib"] = resident_mib() - before
    figures["opened"] = statistics.mean(opened)
    in_order = np.arange(position, position + PER_RANK)
    figures["opened_undealt"] = len(set(mixture.orders[0].shards_of(in_order).tolist()))
    return figures


def balance(mixture: Mixture, num_steps: int) -> tuple[list[int], list[int]]:
    """Shards that each rank opens for a step's batch, and clips it gets, over all ranks and some steps."""
    opened, clips = [], []
    for step in range(num_steps):
        first = step * PER_RANK * NUM_RANKS
        dealt = mixture.by_shard(np.arange(first, first + PER_RANK * NUM_RANKS)).reshape(NUM_RANKS, PER_RANK)
        shards = mixture.orders[0].shards_of(dealt.ravel()).reshape(dealt.shape)
        opened += [len(set(row)) for row in shards.tolist()]
        clips += [len(set(row)) for row in dealt.tolist()]
    return opened, clips


def scale_rows() -> list[str]:
    """The table of the simulation."""
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name), NUM_SHARDS)
        runs = []
        for _ in range(REPEATS):
            command = [sys.executable, __file__, "rank", name]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        opened, clips = balance(Mixture([ClipOrder(Shards.open([name]).num_clips, 0)], [1], 0), 10)
    of = {key: [run[key] for run in runs] for key in runs[0]}
    rows = [
        ("start of a rank: manifest read, shards listed, order laid out, s", spread(of["start_s"], 2)),
        ("once a node: the size of every shard checked (local files), s", spread(of["sizes_s"], 2)),
        ("memory of a rank for it, MiB", spread(of["rank_mib"])),
        ("memory of a worker after 20 batches, MiB (forked ones share most of it)", spread(of["worker_mib"])),
        ("sent to a spawned worker, MB", spread(of["pickle_mb"])),
        ("seek to a random position of 50 epochs, ms", spread(of["seek_ms"], 2)),
        (f"a batch of {PER_RANK}: which clips, CPU ms", spread(of["deal_ms"], 2)),
        (f"a batch of {PER_RANK}: their indexes, CPU ms", spread(of["index_ms"], 2)),
        ("clips of a rank in a batch, all ranks, 10 steps", f"{min(clips)} to {max(clips)}"),
        ("shards that a rank opens for a batch, mean (most)", f"{statistics.mean(opened):.2f} ({max(opened)})"),
        ("the same, if the batch were dealt in the stream's order", f"{statistics.mean(of['opened_undealt']):.1f}"),
    ]
    return [f"| {what} | {figure} |" for what, figure in rows]


# --- how well it shuffles

Clips = NDArray[np.int64]  # in the order they come: shard · clips per shard + number in the shard


def ours(num_shards: int, per_shard: int, block: int, seed: int) -> Clips:
    order = ClipOrder([per_shard] * num_shards, seed, block)
    located = (order.locate(position) for position in range(order.num_clips))
    return np.array([shard * per_shard + clip for _, shard, clip in located])


def webdataset(num_shards: int, per_shard: int, buffer: int, workers: int, seed: int) -> Clips:
    """WebDataset's shuffled shards, dealt to workers, each with a shuffle buffer; batches of 32 from each in turn."""
    rng = random.Random(seed)
    shards = rng.sample(range(num_shards), num_shards)

    def worker(number: int) -> Iterator[int]:
        clips = (shard * per_shard + clip for shard in shards[number::workers] for clip in range(per_shard))
        shuffle = wds.filters.shuffle(buffer, initial=buffer, rng=random.Random(f"{seed} {number}"))
        return iter(shuffle(clips))

    streams, out = [worker(number) for number in range(workers)], []
    while streams:
        for stream in list(streams):
            part = [clip for _, clip in zip(range(32), stream, strict=False)]
            out += part
            if len(part) < 32:
                streams.remove(stream)
    return np.array(out)


def quality(clips: Clips, per_shard: int) -> tuple[float, float, float]:
    """(median, 95 %) of how far apart neighbours of a shard come, as a share of the epoch; clips in a batch of 256 that
    have another of their shard in it, percent."""
    place = np.empty_like(clips)
    place[clips] = np.arange(len(clips))
    apart = np.abs(np.diff(place.reshape(-1, per_shard), axis=1)).ravel() / len(clips)
    shards = clips[: len(clips) // 256 * 256].reshape(-1, 256) // per_shard
    crowded = [np.unique(row, return_counts=True)[1] for row in shards]
    together = sum(int(counts[counts > 1].sum()) for counts in crowded) / shards.size
    return float(np.median(apart)), float(np.quantile(apart, 0.95)), 100 * together


def shuffle_rows() -> list[str]:
    """The table of shuffle quality: 1000 shards of 100 clips."""
    num_shards, per_shard, rows = 1000, 100, []
    ways: dict[str, Callable[[int], Clips]] = {
        "full shuffle": lambda seed: np.random.default_rng(seed).permutation(num_shards * per_shard),
        "ours, `shuffle_block=65536` (default)": lambda seed: ours(num_shards, per_shard, 65_536, seed),
        "ours, `shuffle_block=8192`": lambda seed: ours(num_shards, per_shard, 8192, seed),
        "ours, `shuffle_block=1000`": lambda seed: ours(num_shards, per_shard, 1000, seed),
        "webdataset, buffer of 8192": lambda seed: webdataset(num_shards, per_shard, 8192, 1, seed),
        "webdataset, buffer of 1000": lambda seed: webdataset(num_shards, per_shard, 1000, 1, seed),
        "webdataset, buffer of 1000 in each of 8 workers": lambda seed: webdataset(
            num_shards, per_shard, 1000, 8, seed
        ),
        "no shuffle but of the shards": lambda seed: ours(num_shards, per_shard, 1, seed),
    }
    for name, way in ways.items():
        orders = [way(seed) for seed in range(REPEATS)]
        assert all(np.array_equal(np.sort(order), np.arange(num_shards * per_shard)) for order in orders)
        middle, far, together = zip(*(quality(order, per_shard) for order in orders), strict=True)
        rows.append(f"| {name} | {spread(middle, 4)} | {spread(far, 4)} | {spread(together)} |")
    return rows


def main() -> None:
    """Measure and write."""
    clips = NUM_SHARDS * sum(SIZES) // len(SIZES)
    text = f"""# The stream at size, and how well it shuffles

`python benchmarks/stream/run.py`; {platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python
{platform.python_version()}. Median [least to most] of {REPEATS} runs, each in a process of its own.

## {clips:,} clips in {NUM_SHARDS:,} shards, {NUM_RANKS} ranks × {NUM_WORKERS} workers, {PER_RANK} clips a rank and step

No audio: sparse shards with real indexes and a real manifest, read by the real code. Which clips a rank's worker reads
is arithmetic, so a worker makes its batches without asking anyone, and no rank makes more or fewer than another.

| what | figure |
|---|---|
{chr(10).join(scale_rows())}

## Shuffle quality: 1000 shards of 100 clips

How far apart two clips come in an epoch that lie side by side in a shard, as a share of the epoch: of a full shuffle
the median is 1 - √½ = 0.293. And how many clips of a batch of 256 share it with another of their shard.

| order | apart: median | apart: 95 % | together in a batch, % |
|---|---|---|---|
{chr(10).join(shuffle_rows())}

At equal size a buffer mixes further than a block. But a buffer holds audio (8192 clips of 400 kB are 3.3 GB in each
worker) and is gone when the run is killed, while a block is numbers that follow from the seed (half a megabyte for
65,536 clips): it can be as large as one likes, and up to `shuffle_block` clips the shuffle is a full one. What a larger
block costs is more shards open at a time. Beyond that size clips that lie far apart stay apart, so shards should be
mixtures already: `make_shards.py` packs clips in the order of a hash of their names.
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        print(json.dumps(one_rank(sys.argv[2])))
    else:
        main()
