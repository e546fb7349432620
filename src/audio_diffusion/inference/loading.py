"""What a user names, file or folder or model of the hub -> a Generator."""

from collections.abc import Sequence
from pathlib import Path

import torch

from audio_diffusion.inference import checkpoint_reader, exporting
from audio_diffusion.inference.generator import Generator


def read_weights(ckpt: str | Path, weights: str = "ema") -> checkpoint_reader.Weights:
    """The weights of a trained model, of all that ``load`` takes; no network is built.

    Raises:
        ConfigError: if there is none, or it cannot be used.
    """
    folder = exporting.pull(str(ckpt)) if str(ckpt).startswith(exporting.HUB) else Path(ckpt)
    if exporting.is_exported(folder):
        return exporting.read_weights(folder, weights)
    return checkpoint_reader.read_weights(checkpoint_reader.find(str(ckpt)), weights)


def load(
    ckpt: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu", trust: Sequence[str] = ()
) -> Generator:
    """A trained model, ready to generate.

    Args:
        ckpt: a checkpoint file, a run's folder (its newest checkpoint), a folder written by ``export``, or
            ``hub:USER/NAME``, a model of the Hugging Face hub.
        weights: "ema" (averaged, what one listens to) or "raw"; an exported model has one of them.
        device: where the network is put.
        trust: packages, beside this one, whose code is run where the file names it: of a network of one's own,
            ``trust=["my_package"]``.

    Raises:
        ConfigError: if there is none, or it cannot be used.
    """
    folder = exporting.pull(str(ckpt)) if str(ckpt).startswith(exporting.HUB) else Path(ckpt)
    if exporting.is_exported(folder):
        return exporting.read(folder, weights=weights, device=device, trust=trust)
    return checkpoint_reader.load(checkpoint_reader.find(str(ckpt)), weights=weights, device=device, trust=trust)
