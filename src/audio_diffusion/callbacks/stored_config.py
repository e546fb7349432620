"""Callback that stores the run's configuration in its checkpoints."""

from collections.abc import Mapping
from typing import Any

import lightning as L


class StoreConfig(L.Callback):
    """Stores the run's configuration in every checkpoint; a model is rebuilt from it.

    Args:
        config: plain data, without secrets.
    """

    def __init__(self, config: Mapping[str, Any] | None):
        self._config = config

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self._config
