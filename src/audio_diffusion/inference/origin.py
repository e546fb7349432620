"""The origin of a trained model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audio_diffusion.data.training_data import TrainingData


@dataclass(frozen=True)
class Origin:
    """The training and the file that a model comes from.

    Args:
        name: name of the run.
        step: optimizer step of the checkpoint.
        weights: "ema" or "raw".
        source: the file or folder that it was loaded from.
        classes: class names of the training data, in the order of the network's labels.
        nodes: the nodes of the configuration that the model's parts are built from, by the names of the groups
            (``model``, ``representation``, ``diffusion``, ``sampler``), which ``export`` writes.
        data: the shards that it was trained on; None if they are not known, as for an exported model.
    """

    name: str
    step: int
    weights: str
    source: Path
    classes: list[str] = field(default_factory=list)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: TrainingData | None = None
