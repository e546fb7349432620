"""What a snapshot copies, and how non-finite values are found."""

from collections import OrderedDict

import pytest
import torch

from audio_diffusion.checkpoints.snapshot import HostCopy, non_finite


def test_a_snapshot_shares_nothing_with_what_it_was_taken_of():
    content = {"state": OrderedDict(a=torch.arange(6.0).view(2, 3).T), "plain": [{"n": 1}, (torch.ones(2), "x")]}
    copied = HostCopy().take(content)
    content["state"]["a"].add_(1)
    content["plain"][0]["n"] = 2
    content["plain"][1][0].zero_()
    assert torch.equal(copied["state"]["a"], torch.arange(6.0).view(2, 3).T)
    assert copied["plain"][0] == {"n": 1}
    assert torch.equal(copied["plain"][1][0], torch.ones(2))


def test_the_next_copy_takes_the_memory_of_the_one_before_where_it_fits():
    copies, content = HostCopy(), {"a": torch.ones(3), "b": torch.ones(2)}
    first = copies.take(content)
    second = copies.take({"a": torch.zeros(3), "b": torch.zeros(4)})
    assert first["a"].data_ptr() == second["a"].data_ptr()
    assert torch.equal(second["a"], torch.zeros(3))
    assert torch.equal(second["b"], torch.zeros(4))


def test_a_view_is_copied_without_the_rest_of_its_memory():
    assert HostCopy().take(torch.zeros(1000)[:10]).untyped_storage().nbytes() == 40


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_bad_value_is_found_and_named(bad, dtype):
    content = {"state": {"good": torch.ones(5), "bad": torch.ones(3, 4, dtype=dtype)}, "n": torch.tensor(3), "s": "nan"}
    assert non_finite(content) is None
    content["state"]["bad"][2, 1] = bad
    assert non_finite(content) == "state.bad"
    assert non_finite([content]) == "[0].state.bad"


def test_large_and_empty_ones_are_finite():
    assert (
        non_finite(
            {"a": torch.full((10,), 3e38), "b": torch.empty(0), "c": torch.full((3,), 1e308, dtype=torch.float64)}
        )
        is None
    )
    assert non_finite({}) is None
