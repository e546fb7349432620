"""Runs of the real train.py on one rank and several, watched; each is started once for all tests of this folder."""

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from audio_diffusion.checkpoints import sharded
from audio_diffusion.checkpoints.folder import problem_of

CLIP = "trainer.gradient_clip_val=0.005"  # far below the gradients' norms: all steps are clipped
DDP = ("trainer=ddp", "trainer.accelerator=cpu")
SHARDS = "trainer.strategy.sharded_checkpoints=true"
FSDP = ("trainer=fsdp", "trainer.accelerator=cpu")
SAMPLED = ("one", "two", "sharded")  # runs that also make samples, at steps 3 and 6


@dataclass
class Watched:
    """A finished run, and what its ranks saw."""

    folder: Path
    ranks: int
    text: str

    @cached_property
    def seen(self) -> list[dict[str, Any]]:
        """What each rank saw; see probe.py."""
        return [torch.load(self.folder / f"{rank}.pt", weights_only=False) for rank in range(self.ranks)]

    @property
    def rows(self) -> dict[str, float]:
        """All losses and gradient norms, by name and step."""
        kinds = ("train/loss", "train/grad_norm", "val/loss", "val/loss_ema")
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {f"{kind} {row['step']}": row[kind] for row in rows for kind in kinds if kind in row}

    def checkpoint(self, step: int) -> dict[str, Any]:
        """Of a step, verified; whole, however it was written."""
        path = self.folder / f"checkpoints/step_{step:08d}.ckpt"
        assert problem_of(path) is None
        return sharded.read(path) if path.is_dir() else torch.load(path, weights_only=True)


Start = Callable[..., Callable[[], Watched]]


@pytest.fixture(scope="session")
def start(
    launch, tiny: list[str], tiny_sampled: list[str], drum_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """start(name, *overrides, ranks=1, nodes=1) -> a function that waits for the run's end and returns it."""
    cwd = tmp_path_factory.mktemp("ranks")

    def started(name: str, *overrides: str, ranks: int = 1, nodes: int = 1) -> Callable[[], Watched]:
        folder = cwd / "runs" / name
        folder.mkdir(parents=True)
        devices, runs = ranks // nodes, []
        of_ranks = (f"trainer.devices={devices}", f"trainer.num_nodes={nodes}") if ranks > 1 else ()
        small = [*tiny_sampled, "callbacks.sampling.every_n_steps=3"] if name in SAMPLED else tiny
        arguments = [
            f"data.train={drum_shards}", *small, CLIP, f"name={name}", "max_steps=6", "val_every_steps=2",
            "callbacks.checkpoint.keep=9", "trainer.enable_progress_bar=false", *overrides, *of_ranks,
        ]  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for rank in range(ranks):
            env = {"PROBE": str(folder)}
            if ranks > 1:
                env |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank % devices), "WORLD_SIZE": str(ranks),
                    "GROUP_RANK": str(rank // devices), "LOCAL_WORLD_SIZE": str(devices), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": port,
                }  # fmt: skip
            runs.append(launch(cwd, "tests/ranks/probe.py", *arguments, env=env))

        def ended() -> Watched:
            assert [run.wait(300) for run in runs] == [[0]] * ranks, "\n".join(run.text[-3000:] for run in runs)
            return Watched(folder, ranks, "\n".join(run.text for run in runs))

        return ended

    return started


@pytest.fixture(scope="session")
def runs(start: Start) -> dict[str, Watched]:
    """The same six steps, of the same clips, shared out in all ways."""
    waiting = {
        "one": start("one"),
        "accumulated": start("accumulated", "trainer.accumulate_grad_batches=2"),
        "two": start("two", *DDP, ranks=2),
        "sharded": start("sharded", *FSDP, ranks=2),
        "shards": start("shards", *FSDP, SHARDS, ranks=2),
        "mixed": start("mixed", *FSDP, "trainer.precision=bf16-mixed", ranks=2),
        "pure": start("pure", *FSDP, "trainer.precision=bf16-true", ranks=2),
    }
    return {name: ended() for name, ended in waiting.items()}


@pytest.fixture(scope="session")
def others(start: Start, runs: dict[str, Watched]) -> dict[str, Watched]:
    """A few steps of each choice of trainer that nothing above takes, on the CPU."""
    steps = {"auto": ["max_steps=2"], "cpu": ["max_steps=2"], "gpu": ["max_steps=2"], "debug": ["run_dir=runs/debug"]}
    waiting = {n: start(n, f"trainer={n}", "trainer.accelerator=cpu", *more) for n, more in steps.items()}
    return {name: ended() for name, ended in waiting.items()}


@pytest.fixture(scope="session")
def resumed(start: Start, runs: dict[str, Watched]) -> dict[str, Watched]:
    """Runs that go on from others' step 4, on another number of ranks."""

    def go_on(name: str, *overrides: str, **options: int) -> Callable[[], Watched]:
        begun = runs[name.split("_")[0]].folder
        return start(name, f"ckpt={begun}/checkpoints/step_00000004.ckpt", *overrides, **options)

    waiting = {
        "one_to_two": go_on("one_to_two", *DDP, ranks=2),
        "one_to_sharded": go_on("one_to_sharded", *FSDP, ranks=2),
        "two_to_one": go_on("two_to_one"),
        "two_to_nodes": go_on("two_to_nodes", "trainer=multinode", "trainer.accelerator=cpu", ranks=2, nodes=2),
        "sharded_to_one": go_on("sharded_to_one"),
        "shards_to_one": go_on("shards_to_one"),
        "shards_to_hybrid": go_on("shards_to_hybrid", *FSDP, SHARDS, ranks=4, nodes=2),
    }
    return {name: ended() for name, ended in waiting.items()}
