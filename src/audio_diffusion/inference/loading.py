"""Loads a Model from the file, folder or hub model that a user names."""

from collections.abc import Sequence
from pathlib import Path

import torch

from audio_diffusion.inference import checkpoint_reader, exporting
from audio_diffusion.inference.model import Model


def read_weights(ckpt: str | Path, weights: str = "ema") -> checkpoint_reader.Weights:
    """Reads the weights of a trained model from any source that ``load`` accepts, without building the network.

    Raises:
        ConfigError: if there is no model, or it cannot be used.
    """
    folder = exporting.pull(str(ckpt)) if str(ckpt).startswith(exporting.HUB) else Path(ckpt)
    if exporting.is_exported(folder):
        return exporting.read_weights(folder, weights)
    return checkpoint_reader.read_weights(checkpoint_reader.find(str(ckpt)), weights)


def load(
    ckpt: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu", trust: Sequence[str] = ()
) -> Model:
    """Loads a trained model, ready to generate.

    Args:
        ckpt: a checkpoint file, a run's folder (its newest checkpoint), a folder written by ``export``, or
            ``hub:USER/NAME``, a model of the Hugging Face hub.
        weights: "ema" (averaged, the usual choice) or "raw"; an exported model has only one of them.
        device: device of the network.
        trust: packages, in addition to this one, whose classes the file may name and thereby run, such as
            ``trust=["my_package"]`` for your own network.

    Raises:
        ConfigError: if there is no model, or it cannot be used.
    """
    return checkpoint_reader.assemble(read_weights(ckpt, weights), device, trust)
