"""What is said of a schedule before any time is spent on it."""

import pytest

from audio_diffusion.diffusion.grids import balanced
from audio_diffusion.diffusion.parameterization import EdmPreconditioning, Epsilon, V, Velocity
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.report import describe
from audio_diffusion.diffusion.schedules import Flow, VarianceExploding, cosine, input_scaled, linear, lowered


@pytest.mark.parametrize(("num_steps", "beta_end", "left"), [(50, 0.05, "0.5"), (200, 0.02, "0.36")])
def test_diffwave_schedules_do_not_end_in_noise(num_steps: int, beta_end: float, left: str) -> None:
    """Kong et al. 2021's T = 50 and T = 200: x_T is half, a third signal."""
    lines = describe(Diffusion(linear(num_steps, 1e-4, beta_end), Epsilon()))
    assert f"of x_T {left}" in lines[0]
    (warning,) = [line for line in lines if "does not end in noise" in line]
    assert warning.startswith("warning: ")
    assert "only noise comes out" in warning
    assert "diffusion=zero_snr" in warning

    faint = describe(Diffusion(input_scaled(linear(num_steps, 1e-4, beta_end), 0.1), Epsilon()))
    assert not [line for line in faint if "does not end in noise" in line]  # it does, for waveforms


def test_the_floor_is_told_in_db_and_warned_of() -> None:
    lines = describe(Diffusion(linear(), Epsilon()), balanced, 20)
    assert "the lowest noise is -40 dB" in lines[0]
    assert any(line.startswith("warning: ") and "hiss" in line for line in lines)
    assert lines[-1] == "sampler: 20 steps, the last at -40 dB of noise; quieter sounds are lost"


@pytest.mark.parametrize(
    "process",
    [
        Diffusion(lowered(linear()), Epsilon()),
        Diffusion(lowered(cosine()), V()),
        Diffusion(VarianceExploding(), EdmPreconditioning()),
        Diffusion(Flow(), Velocity()),
    ],
)
def test_good_schedules_get_no_warning(process: Diffusion) -> None:
    lines = describe(process, balanced, 20)
    assert not [line for line in lines if line.startswith("warning")]
    assert "the lowest noise is -90 dB" in lines[0]
    assert "the last at -6" in lines[1]
