"""The package itself: what importing it brings, and what it does not."""

import subprocess
import sys

import pytest

import audio_diffusion


def test_signals_are_listened_to_and_threads_set_up_before_torch_is_imported() -> None:
    code = "import sys; from audio_diffusion import signals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_has_what_it_names_and_nothing_else() -> None:
    assert all(callable(getattr(audio_diffusion, name)) for name in audio_diffusion.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        audio_diffusion.lod  # noqa: B018
