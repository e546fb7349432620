"""The likelihood of audio under an exact representation that is not made of single samples."""

import math

import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.bits import BoundMeter, FlowMeter
from audio_diffusion.metrics.coding import code
from audio_diffusion.representations.mdct import Mdct
from audio_diffusion.representations.waveform import Waveform


@pytest.mark.slow
@pytest.mark.parametrize("meter", [BoundMeter(num_levels=32, continuous=True), FlowMeter(tolerance=1e-3)])
def test_white_noise_takes_the_bits_that_it_takes_as_a_waveform(meter, schedules, white) -> None:
    schedule = schedules["linear"][0]
    audio = torch.randn(64, 1, 64, generator=torch.Generator().manual_seed(0)) / 8
    quiet = type(white)(torch.tensor([1 / 64]))
    mask = (torch.arange(64) < torch.tensor([64] * 48 + [50] * 16)[:, None])[:, None]  # 50: six frames of 8 and a rest
    keys = [(i,) for i in range(64)]
    as_waveform = meter(quiet.denoise(schedule, 8.0), schedule, audio, mask, Waveform(8.0), keys)
    as_mdct = meter(quiet.denoise(schedule, 8.0), schedule, audio, mask, Mdct(8, [1 / 8] * 8), keys)

    def bits(found: object, dims: Tensor) -> float:
        nats = found.nats.sum(-1) if isinstance(meter, BoundMeter) else found.nats  # type: ignore[attr-defined]
        return (nats.mean(1).sum() / dims.sum() / math.log(2)).item()

    whole = mask.sum((1, 2)) // 8 * 8
    if isinstance(meter, BoundMeter):
        assert torch.equal(as_mdct.dims, whole.double())
    assert bits(as_mdct, whole) == pytest.approx(bits(as_waveform, mask.sum((1, 2))), abs=0.05)


def test_a_representation_that_is_not_exact_has_no_likelihood() -> None:
    lossy = Waveform()
    lossy.exact = False  # type: ignore[misc]
    with pytest.raises(ValueError, match="the likelihood of audio needs an exact one, which Waveform is not"):
        code(lossy, torch.zeros(1, 1, 4), torch.ones(1, 1, 4, dtype=torch.bool), [torch.Generator()])
