"""The averages of callbacks=power_ema, however a step is shared out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from audio_diffusion.checkpoints import averages
from audio_diffusion.checkpoints.averages import Snapshot
from audio_diffusion.checkpoints.folder import all_in, step_of
from audio_diffusion.inference.averages import rebuild_weights
from audio_diffusion.inference.checkpoint_reader import assemble

KEEP = ("callbacks=power_ema", "callbacks.power_ema.every_n_steps=2")
DDP = ("trainer=ddp", "trainer.accelerator=cpu")
SHARDS = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.strategy.sharded_checkpoints=true")


@pytest.fixture(scope="module")
def kept(start) -> dict[str, Any]:
    """The same six steps on one rank; on two; continued from step 2 in shards, and those from step 4 on one rank."""

    def checkpoint(run: Any, step: int) -> str:
        return f"ckpt={run.folder}/checkpoints/step_{step:08d}.ckpt"

    two = start("averaged_two", *KEEP, *DDP, ranks=2)
    one = start("averaged", *KEEP)()
    shards = start("averaged_shards", *KEEP, *SHARDS, checkpoint(one, 2), ranks=2)()
    back = start("averaged_back", *KEEP, checkpoint(shards, 4))()
    return {"one": one, "two": two(), "shards": shards, "back": back}


def snapshots(run: Any) -> dict[int, Snapshot]:
    return {step_of(path): averages.read(path) for path in all_in(Path(run.folder, "ema"))}


@pytest.mark.parametrize("name", ["two", "shards", "back"])
def test_averages_are_one_ranks_to_rounding(kept, name: str) -> None:
    one, other = snapshots(kept["one"]), snapshots(kept[name])
    assert list(one) == [2, 4, 6]
    assert list(other) == ([4, 6] if name == "back" else [2, 4, 6])
    for step, found in other.items():
        assert (found.num_updates, found.origin, found.lengths) == (step, 0, [0.05, 0.1])
        for mine, theirs in zip(found.averages, one[step].averages, strict=True):
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                torch.testing.assert_close(value, theirs[key], rtol=0, atol=2e-6)
    moved = [one[6].averages[0][key] - one[2].averages[0][key] for key in one[2].averages[0]]
    assert max(value.abs().max() for value in moved) > 3e-4


def test_a_sharded_run_gives_a_model_of_any_length(kept) -> None:
    model = assemble(rebuild_weights(kept["shards"].folder, [0.07])[0], "cpu")
    assert (model.origin.step, model.origin.weights) == (6, "ema of length 0.07")
