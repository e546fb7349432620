"""However a step is shared out, over accumulated batches, ranks and shards, it is the same step."""

import math

import numpy as np
import pytest
import soundfile
import torch

from audio_diffusion.cli.config import CONFIG_DIR

OTHERS = ["accumulated", "two", "sharded", "shards"]


def flat(state: dict) -> torch.Tensor:
    """All weights of a checkpoint's state in one vector."""
    return torch.cat([state[name].double().flatten() for name in sorted(state) if "extra_state" not in name])


def close(mine: dict, other: dict) -> None:
    """Two checkpoints have the same weights, averages and moments, to rounding."""
    assert mine["state_dict"].keys() == other["state_dict"].keys()
    torch.testing.assert_close(flat(mine["state_dict"]), flat(other["state_dict"]), rtol=0, atol=2e-6)
    ((first,), (second,)) = mine["optimizer_states"], other["optimizer_states"]
    assert first["param_groups"] == second["param_groups"]
    for i, moments in second["state"].items():
        for moment, value in moments.items():
            torch.testing.assert_close(first["state"][i][moment], value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_gradient_norms_are_one_ranks_to_rounding(runs, name: str) -> None:
    assert runs[name].rows == pytest.approx(runs["one"].rows, rel=1e-5)
    assert len(runs["one"].rows) == 2 * 6 + 2 * 3


@pytest.mark.parametrize("name", OTHERS)
def test_weights_averages_and_moments_are_one_ranks_to_rounding(runs, name: str) -> None:
    """Also when clipped: by the norm of all gradients, wherever they lie."""
    assert min(norm for row, norm in runs["one"].rows.items() if "grad_norm" in row) > 10 * 0.005
    mine, one = runs[name].checkpoint(6), runs["one"].checkpoint(6)
    close(mine, one)
    moved = flat(one["state_dict"]) - flat(runs["one"].checkpoint(2)["state_dict"])
    assert moved.abs().max() > 3e-4


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_weights_and_averages_are_equal_on_all_ranks(runs, name: str) -> None:
    first, second = (seen["state"] for seen in runs[name].seen)
    saved = runs[name].checkpoint(6)["state_dict"]
    assert any(key.startswith("ema.net.") for key in first)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert torch.equal(value, saved[key]), key


def test_a_rank_keeps_half_of_what_is_sharded(runs) -> None:
    whole, parts = runs["one"].seen[0]["elements"], [seen["elements"] for seen in runs["sharded"].seen]
    assert [seen["elements"] for seen in runs["two"].seen] == [whole, whole]
    assert sum(parts) == pytest.approx(whole, abs=1)  # the EMA's count is on both
    assert max(parts) < 0.6 * whole  # tensors of one row are on the first


@pytest.mark.parametrize("name", OTHERS)
def test_each_step_has_the_same_clips_in_equal_parts(runs, name: str) -> None:
    per_step: dict[int, list[int]] = {}
    sizes = {(len(seen["trained"]), len(positions)) for seen in runs[name].seen for _, positions in seen["trained"]}
    for seen in runs[name].seen:
        for step, positions in seen["trained"]:
            per_step.setdefault(step, []).extend(positions)
    assert {step: sorted(p) for step, p in per_step.items()} == {s: list(range(4 * s, 4 * s + 4)) for s in range(6)}
    assert sizes == ({(12, 2)} if name == "accumulated" else {(6, 2)})


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_each_rank_draws_its_own_noise_and_together_they_draw_one_ranks(runs, name: str) -> None:
    first, second = (seen["noise"] for seen in runs[name].seen)
    mine, theirs = (torch.stack(list(noise.values())).double().flatten() for noise in (first, second))
    correlation = torch.corrcoef(torch.stack([mine, theirs]))[0, 1].item()
    assert abs(correlation) < 4 / math.sqrt(len(mine))  # four standard errors of independent noise
    assert mine.std() == pytest.approx(1, abs=0.03)
    one = runs["one"].seen[0]["noise"]
    assert not first.keys() & second.keys()
    assert (first | second).keys() == one.keys()
    assert all(torch.equal(noise, one[position]) for position, noise in (first | second).items())


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_slots_are_shared_out_and_gathered(runs, name: str) -> None:
    rounds = runs["one"].seen[0]["slots"]
    assert [len(slots) for slots in rounds] == [3, 3]  # at steps 3 and 6
    for all_slots, first, second in zip(rounds, *(seen["slots"] for seen in runs[name].seen), strict=True):
        assert first == all_slots[:2]
        assert second == [all_slots[2], all_slots[0]]  # ranks make equally many: the surplus one is made twice
    for step in (3, 6):
        one, mine = (runs[n].folder / f"samples/step_{step:08d}" for n in ("one", name))
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in mine.iterdir())
        for wav in one.glob("*.wav"):
            np.testing.assert_allclose(soundfile.read(wav)[0], soundfile.read(mine / wav.name)[0], atol=1e-4)


def test_shards_hold_what_a_single_file_holds_to_the_bit(runs) -> None:
    folder = runs["shards"].folder / "checkpoints/step_00000006.ckpt"
    assert {p.name for p in folder.iterdir()} == {"__0_0.distcp", "__1_0.distcp", ".metadata", "rest.pt"}
    shards, file = runs["shards"].checkpoint(6), runs["sharded"].checkpoint(6)
    assert torch.equal(flat(shards["state_dict"]), flat(file["state_dict"]))
    assert shards["state_dict"]["ema._extra_state"] == 6
    for i, moments in file["optimizer_states"][0]["state"].items():
        assert all(torch.equal(value, shards["optimizer_states"][0]["state"][i][k]) for k, value in moments.items())
    same = ("global_step", "lr_schedulers", "loops", "AudioDataModule", "callbacks")
    assert {key: shards[key] for key in same} == {key: file[key] for key in same}


RESUMED = [
    "one_to_two", "one_to_sharded", "two_to_one", "two_to_nodes", "sharded_to_one", "shards_to_one", "shards_to_hybrid",
]  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_with_another_number_of_ranks_as_if_nothing_had_happened(runs, resumed, name: str) -> None:
    through = {row: value for row, value in runs["one"].rows.items() if int(row.split()[1]) > 4}
    assert resumed[name].rows == pytest.approx(through, rel=1e-5)
    assert len(through) == 2 * 2 + 2
    close(resumed[name].checkpoint(6), runs["one"].checkpoint(6))
    positions = [p for seen in resumed[name].seen for _, batch in seen["trained"] for p in batch]
    assert sorted(positions) == list(range(16, 24))


def test_nodes_are_counted_and_weights_are_sharded_within_each(runs, resumed) -> None:
    assert "batch: 4 = 2 nodes × 1 device × 2 clips × 1 accumulated" in resumed["two_to_nodes"].text
    assert "batch: 4 = 2 nodes × 2 devices × 1 clip × 1 accumulated" in resumed["shards_to_hybrid"].text
    parts = [seen["elements"] for seen in resumed["shards_to_hybrid"].seen]
    assert parts == [seen["elements"] for seen in runs["sharded"].seen] * 2


@pytest.mark.parametrize("name", ["mixed", "pure"])
def test_bf16_over_shards_is_close_and_keeps_weights_averages_and_moments_in_float32(runs, name: str) -> None:
    assert runs[name].rows == pytest.approx(runs["one"].rows, rel=0.02)
    assert runs[name].rows != pytest.approx(runs["one"].rows, rel=1e-5)
    for seen in runs[name].seen:
        assert seen["dtypes"] == seen["moments"] == {"torch.float32"}
    before, after = (runs[name].checkpoint(step)["state_dict"] for step in (2, 6))
    assert {value.dtype for key, value in after.items() if "extra" not in key} == {torch.float32}
    assert not torch.equal(before["ema.net.patch.weight"], after["ema.net.patch.weight"])


@pytest.mark.parametrize("name", ["one", *OTHERS])
def test_every_parameter_has_a_gradient_without_a_search_for_unused_ones(runs, name: str) -> None:
    for seen in runs[name].seen:
        assert seen["without_gradient"] == set()
        assert not seen["ddp"].get("find_unused_parameters", False)


def test_how_the_batch_is_divided_is_said_once(runs) -> None:
    assert runs["two"].text.count("batch: 4 = 1 node × 2 devices × 2 clips × 1 accumulated") == 1
    assert runs["accumulated"].text.count("batch: 4 = 1 node × 1 device × 2 clips × 2 accumulated") == 1


def test_every_choice_of_trainer_steps(runs, resumed, others) -> None:
    """On the CPU, as far as one can; ddp, fsdp and multinode are what the runs above take."""
    shipped = {file.stem for file in (CONFIG_DIR / "trainer").glob("*.yaml")}
    assert shipped == {"ddp", "fsdp", "multinode", *others}
    for name, run in others.items():
        losses = {row: value for row, value in run.rows.items() if row.startswith("train")}
        assert losses == pytest.approx({row: runs["one"].rows[row] for row in losses}, rel=1e-5)
        assert len(losses) == 2 * (4 if name == "debug" else 2)
