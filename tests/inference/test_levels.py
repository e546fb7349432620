"""What is said of results that are hardly sounds, and how previews are kept below full scale."""

import pytest
import torch

from audio_diffusion.inference.levels import limited, limited_name, summary, trouble

SINE = 0.5 * torch.sin(torch.arange(1000) * 0.1)[None]


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (SINE, ""),
        (SINE * 2.01, ""),  # a few peaks over full scale
        (SINE * 40, "96 % of the samples over full scale, peak +26.0 dBFS"),
        (SINE * 1e-4, "silent, peak -86 dBFS"),
        (SINE * 0, "silent, peak -120 dBFS"),
        (SINE * 0.01 + 0.3, "a constant offset of 0.30, RMS 0.30"),
        (torch.cat([SINE, SINE * torch.nan], dim=1), "50 % of the samples are not finite"),
        (torch.cat([SINE, SINE + torch.inf], dim=1), "50 % of the samples are not finite"),
    ],
)
def test_what_is_hardly_a_sound_is_told_with_its_figures(clip: torch.Tensor, words: str) -> None:
    assert trouble(clip) == words or (words[:2].isdigit() and trouble(clip).split("%")[1] == words.split("%")[1])


def test_previews_fit_full_scale_in_their_own_shape() -> None:
    assert torch.equal(limited(SINE), SINE)
    assert limited_name("a", SINE) == "a"
    loud = limited(SINE * 40)
    torch.testing.assert_close(loud, SINE / SINE.abs().max())
    assert limited_name("a", SINE * 40) == "a (peak +26 dBFS)"
    assert limited(torch.full((1, 4), torch.nan)).equal(torch.zeros(1, 4))


def test_the_first_five_are_named() -> None:
    assert summary({"a": "silent"}, 3) == "1 of 3 is not usable audio: a: silent"
    assert summary(dict.fromkeys("abcdefg", "x"), 9).endswith("; e: x; and 2 more")
