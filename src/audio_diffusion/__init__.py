"""Train diffusion models on audio.

Terms and symbols:

    clip        one audio file inside a shard         crop     the fixed-length window of a clip that is trained on
    shard       one .tar                              index    per-shard list of clips and the offsets of their bytes
    step        one optimizer step                    NFE      network evaluations used to make one sample
    x0, x_t     clean and noised signal [B, D, L]     noise    ε ~ N(0, I), drawn
    t           time in [0, 1] (DDPM's index / T)     alpha_t, sigma_t   x_t = alpha_t·x0 + sigma_t·noise
    alpha_bar   alpha_t² (the DDPM ᾱ_t)               log_snr  log(alpha_t² / sigma_t²)
    B C T       batch, channels, samples of audio     D L      channels and length of x0

The two central contracts:

    net(x_t, t, cond) -> tensor of x_t's shape        a network
    denoise(x_t, t)   -> estimates of x0 and noise    a denoiser, for samplers: net + parameterization + guidance

``load(ckpt).generate(..)`` uses a trained model; ``export`` and ``push`` share it.
"""

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def _wait_without_spinning() -> None:
    """Lets OpenMP's idle threads sleep early: threads that spin long while they wait make every operation several times
    slower where other programs run as well. GNU's OpenMP (torch for Linux) and LLVM's (macOS, conda) read this when
    torch is loaded; what the user has set stays."""
    if {"GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"} & os.environ.keys():
        return
    os.environ["GOMP_SPINCOUNT"] = "2000"  # turns of a loop
    os.environ["KMP_BLOCKTIME"] = "1"  # ms
    if "torch" in sys.modules:  # too late for this process, not for those that it starts
        warnings.warn(
            "torch was imported before audio_diffusion: its waiting threads spin, which makes it slow where other "
            "programs run as well. Import audio_diffusion first, or set GOMP_SPINCOUNT=2000 (macOS: KMP_BLOCKTIME=1)",
            stacklevel=3,
        )


_wait_without_spinning()

if TYPE_CHECKING:
    from audio_diffusion.inference.exporting import export, push
    from audio_diffusion.inference.loading import load
    from audio_diffusion.inference.model import Model

__all__ = ["Model", "export", "load", "push"]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use, since train.py must run some steps before torch is imported."""
    homes = {
        "Model": "inference.model", "export": "inference.exporting", "push": "inference.exporting",
        "load": "inference.loading",
    }  # fmt: skip
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)
