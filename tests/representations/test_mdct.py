"""The MDCT as a representation: orthonormal, exactly invertible, and scaled band by band."""

import math

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.consistency import _correction
from audio_diffusion.diffusion.editing.constraints import Kept
from audio_diffusion.diffusion.editing.through import Through, constraint_on_x0
from audio_diffusion.representations.mdct import Mdct, dct4
from audio_diffusion.representations.representation import Representation, check_representation
from audio_diffusion.representations.waveform import Waveform


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def stds(frame_length: int) -> list[float]:
    return [1.0 / (1 + k) for k in range(frame_length)]


def error_db(found: Tensor, expected: Tensor) -> float:
    return 20 * math.log10(((found - expected).norm() / expected.norm()).item())


@pytest.mark.parametrize("size", [2, 4, 6, 10, 64, 502])
def test_the_dct_is_that_of_its_formula(size: int) -> None:
    n = torch.arange(size, dtype=torch.float64) + 0.5
    matrix = (2 / size) ** 0.5 * torch.cos(math.pi / size * n[:, None] * n)
    x = noise(3, size, dtype=torch.float64)
    assert torch.allclose(dct4(x), x @ matrix, atol=1e-12)


def test_a_frame_inside_is_the_textbooks_mdct_of_the_samples_around_it() -> None:
    size, audio = 8, noise(1, 1, 40, dtype=torch.float64)
    x0 = Mdct(size).encode(audio)[0]
    n, k = torch.arange(2 * size) + 0.5, torch.arange(size)[:, None] + 0.5
    basis = (2 / size) ** 0.5 * torch.cos(math.pi / size * (n + size / 2) * k) * torch.sin(math.pi / (2 * size) * n)
    for frame in range(1, 4):
        start = frame * size - size // 2
        assert torch.allclose(x0[:, frame], basis.double() @ audio[0, 0, start : start + 2 * size], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("size", [2, 6, 64, 254, 512])
def test_audio_comes_back(size: int, channels: int) -> None:
    audio, plain, scaled = noise(2, channels, size * 5), Mdct(size), Mdct(size, stds(size))
    assert tuple(plain.encode(audio).shape[1:]) == plain.shape(channels, size * 5) == (channels * size, 5)
    for mdct in (plain, scaled):
        assert error_db(mdct.decode(mdct.encode(audio)), audio) < -120
    assert plain.encode(audio).norm().item() == pytest.approx(audio.norm().item(), rel=1e-6)  # orthonormal


def test_channels_stay_apart() -> None:
    audio = noise(1, 2, 48)
    both = Mdct(8).encode(audio)
    assert torch.equal(both[:, 8:], Mdct(8).encode(audio[:, 1:]))


def test_each_band_of_the_data_has_unit_variance() -> None:
    clips = [noise(2, 4096).cumsum(-1) * 0.01 for _ in range(3)]  # far louder at low frequencies
    measured = Mdct(16).statistics([*clips, noise(2, 7)])  # a clip shorter than a frame adds nothing
    x0 = Mdct(16, **measured).encode(torch.stack(clips)).unflatten(1, (2, 16))
    assert torch.allclose(x0.square().mean((0, 1, 3)), torch.ones(16), rtol=2e-3)
    assert measured["band_std"][0] > 10 * measured["band_std"][-1]
    with pytest.raises(ValueError, match="band_std: expected training clips with sound in them"):
        Mdct(16).statistics([torch.zeros(1, 64)])


def test_no_band_is_amplified_by_more_than_60_db_against_the_loudest() -> None:
    tone = torch.sin(math.pi / 16 * torch.arange(4096))[None]
    measured = Mdct(16).statistics([torch.nn.functional.pad(tone, (1024, 1024)).double()])["band_std"]
    assert min(measured) >= max(measured) * 0.9e-3


@pytest.mark.parametrize("mdct", [Mdct(6), Mdct(6, stds(6))])
def test_log_det_is_that_of_the_matrix(mdct: Mdct) -> None:
    matrix = mdct.encode(torch.eye(48, dtype=torch.float64).unflatten(1, (2, 24))).flatten(1)
    assert mdct.log_det(2, 24) == pytest.approx(torch.linalg.slogdet(matrix)[1].item(), abs=1e-9)


def test_a_frame_is_masked_if_none_of_its_samples_is_a_clips() -> None:
    valid = (torch.arange(32) < torch.tensor([[9], [0], [32]]))[:, None]
    assert Mdct(8).mask(valid)[:, 0].tolist() == [[True, True, False, False], [False] * 4, [True] * 4]


def test_bad_options_are_refused() -> None:
    for size in (0, 7, -2):
        with pytest.raises(ValueError, match="frame_length: expected an even number"):
            Mdct(size)
    with pytest.raises(ValueError, match="band_std: expected 4 positive deviations"):
        Mdct(4, [1.0, 1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"num_samples: expected a multiple of 8.* such as 8 or 16, got 12"):
        Mdct(8).shape(1, 12)


@pytest.mark.parametrize("representation", [Waveform(2.0), Mdct(8)])
def test_they_are_representations(representation: Representation) -> None:
    check_representation(representation)


def test_with_as_many_directions_as_known_samples_the_conditional_mean_is_exact() -> None:
    """Of Gaussian x0 = encode(audio), given some samples of the audio: Σ Aᵀ (A Σ Aᵀ)⁻¹ (y - A m)."""
    mdct, size = Mdct(4, stds(4)), 12
    matrix = mdct.decode(torch.eye(size, dtype=torch.float64).unflatten(1, (4, 3))).flatten(1).T  # audio = matrix @ x0
    root = noise(size, size, dtype=torch.float64)
    cov, mean, clip = root @ root.T / size, noise(1, 4, 3, dtype=torch.float64), noise(1, 1, 12, dtype=torch.float64)
    keep = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0], dtype=torch.bool)
    known = constraint_on_x0(mdct, clip, lambda audio: Kept(audio, keep[None, None]))
    assert isinstance(known, Through)
    found = mean + _correction(mean, known, lambda v: (v.flatten(1) @ cov).unflatten(1, (4, 3)), 5)
    a, gap = matrix[keep], clip[0, 0, keep] - matrix[keep] @ mean.flatten()
    expected = mean.flatten() + cov @ a.T @ torch.linalg.solve(a @ cov @ a.T, gap)
    assert torch.allclose(found.flatten(), expected, atol=1e-8)
    assert torch.allclose(mdct.decode(known.onto(mean))[..., keep], clip[..., keep], atol=1e-12)


def test_of_a_waveform_what_is_known_is_constraint_on_x0_x0_itself() -> None:
    clip = noise(1, 1, 12)
    known = constraint_on_x0(Waveform(3.0), clip, lambda x0: Kept(x0, torch.ones(1, 1, 12, dtype=torch.bool)))
    assert torch.equal(known.onto(torch.zeros_like(clip)), clip * 3.0)
