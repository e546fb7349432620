"""Everything that is made with a model works where the model diffuses MDCT frames instead of samples."""

from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import LABEL, LENGTH, RATE, recipe, state_of

import audio_diffusion
from audio_diffusion import Model
from audio_diffusion.inference.checkpoint_reader import Weights, assemble

BAND_STD = [0.3 / (1 + k) for k in range(16)]


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> Model:
    channels = request.param
    config = recipe(LABEL, channels)
    config["representation"] = {
        "_target_": "audio_diffusion.representations.mdct.Mdct", "frame_length": 16, "band_std": BAND_STD,
    }  # fmt: skip
    config["model"] |= {"channels": 16 * channels, "patch_size": 2}
    return assemble(Weights(state_of(config), config, 7, "ema", Path("tiny.ckpt")), "cpu")


@pytest.fixture(scope="module")
def clip(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.2 * torch.randn(1, model.channels, LENGTH + 100, generator=generator)


def test_what_is_generated_is_audio_of_the_length_wanted(model: Model) -> None:
    audio = model.generate([0, 1], ["kick", "hat"])
    assert audio.shape == (2, model.channels, LENGTH)
    assert audio.isfinite().all()
    assert torch.allclose(model.generate([1], ["hat"])[0], audio[1], atol=1e-5)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 0.4003])
def test_shorter_and_longer_than_the_network_was_trained_on(model: Model, seconds: float) -> None:
    audio = model.generate([0], ["kick"], seconds=seconds)
    assert audio.shape[-1] == round(seconds * RATE)
    assert audio.isfinite().all()


def test_what_is_kept_comes_back_bit_by_bit(model: Model, clip: torch.Tensor) -> None:
    made = model.inpaint(clip, [(0.05, 0.1)], [0], ["kick"])
    start, end = round(0.05 * RATE), round(0.1 * RATE)
    assert torch.equal(made[..., :start], clip[..., :start])
    assert torch.equal(made[..., end:], clip[..., end:])
    assert not torch.equal(made[..., start:end], clip[..., start:end])
    longer = model.continue_(clip, 0.05, [0], ["kick"])
    assert torch.equal(longer[..., : clip.shape[-1]], clip)


def test_the_other_tasks(model: Model, clip: torch.Tensor) -> None:
    assert torch.equal(model.vary(clip, 0.0, [0], ["kick"]), clip)
    assert model.vary(clip, 0.5, [0], ["kick"]).shape == clip.shape
    between = model.interpolate(clip, clip.flip(-1), [0.0, 0.5, 1.0], ["kick"], num_steps=3)
    assert between.clips.shape == (1, 3, *clip.shape[1:])
    clipped = clip.clamp(-0.2, 0.2)
    repaired = model.declip(clipped, [0], ["kick"])
    assert torch.equal(repaired[clipped.abs() < 0.2], clipped[clipped.abs() < 0.2])
    assert (repaired.abs() >= clipped.abs()).all()
    low = model.extend_bandwidth(clip, 1000.0, [0], ["kick"])
    spectrum, of_clip = torch.fft.rfft(low), torch.fft.rfft(clip)
    assert torch.allclose(spectrum[..., :100], of_clip[..., :100], atol=1e-4)


def test_white_noise_is_not_white_there_and_that_is_said(model: Model, clip: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"denoise: expected a model of the waveform .* diffuses Mdct"):
        model.denoise(clip, [0], ["kick"])


def test_it_is_exported_with_the_deviations_of_its_bands(model: Model, tmp_path: Path) -> None:
    again = audio_diffusion.load(audio_diffusion.export(model, tmp_path / "exported"))
    assert torch.equal(again.generate([3], ["hat"]), model.generate([3], ["hat"]))
