"""Audio to x0 and back."""

import math

import pytest
import torch

from audio_diffusion.representations.waveform import Waveform


@pytest.mark.parametrize("scale", [1.0, 0.25, 8.0])
def test_round_trip(scale: float) -> None:
    audio = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))
    form = Waveform(scale)
    x0 = form.encode(audio)
    torch.testing.assert_close(x0.std(), scale * audio.std())
    assert x0.shape[1:] == form.shape(2, 50)
    torch.testing.assert_close(form.decode(x0), audio)


def test_nothing_is_clipped() -> None:
    loud = torch.tensor([[[-3.0, 3.0]]])
    assert torch.equal(Waveform(1.0).decode(loud), loud)
    assert torch.equal(Waveform(1.0).encode(loud), loud)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale: expected a positive factor, got {scale}"):
        Waveform(scale)
