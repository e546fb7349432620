"""What FSDP refuses; that it trains and resumes is tested on ranks."""

import pytest
import torch

from audio_diffusion.networks.unet1d import UNet1d
from audio_diffusion.training.fsdp import _refuse_other_sizes


def test_weights_of_an_older_network_with_fewer_bands_are_refused_in_one_line() -> None:
    net = UNet1d(2, patch_size=8, widths=(16, 64), factors=(4,), num_blocks=1)
    own = net.state_dict()
    _refuse_other_sizes({**own, "step": 7}, own)
    net._take_bands(16)  # as checkpoints have them that were saved before every network started as the identity
    with pytest.raises(
        ValueError, match=r"ckpt: 4 weights .* analysis.weight: \[16, 2, 16\], and \[32, 2, 16\] here"
    ) as told:
        _refuse_other_sizes(dict(net.state_dict()), own)
    assert "resume it without FSDP: trainer=auto or trainer=ddp" in str(told.value)
    torch.testing.assert_close(own["analysis.weight"][:16], net.analysis.weight.detach())
