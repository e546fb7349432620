"""The likelihood as a metric: what its figures mean is said in words."""

import pytest

from audio_diffusion.metrics import bits_per_dim


@pytest.mark.parametrize(("bits", "words"), [(8.25, "8.25 bits is better than"), (14.9, "14.9 bits is worse than")])
def test_it_compares_with_white_noise(bits: float, words: str) -> None:
    lines = bits_per_dim.verdict({"white_gaussian": {"bits_per_dim": 13.9}, "bound": {"bits_per_dim": bits}})
    assert "lower is better" in lines[0]
    assert len(lines) == 2
    assert f"variational bound: {words} the 13.9 of white noise" in lines[1]
    assert ("has not learnt such sounds" in lines[1]) == (bits > 13.9)
