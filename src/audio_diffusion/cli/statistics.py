"""Measures options of the representation that depend on the data, before a new run; the run keeps them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.run_folder import stored_config
from audio_diffusion.cli.train_options import TrainOptions
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.data.training_data import CropFormat

NUM_CLIPS = 512


def with_statistics(options: TrainOptions, patterns: Sequence[str], store: RemoteStore) -> TrainOptions:
    """Fills in options of the representation that are null and that its method ``statistics`` measures.

    A run that resumes from, or starts with, a checkpoint of the same representation takes them from it. Otherwise they
    are measured on up to 512 training clips, chosen by the run's seed. Returns the completed configuration.

    Raises:
        ConfigError: if the shards cannot be read, or the clips cannot be measured.
    """
    node = options.representation
    unknown = [name for name, value in node.items() if value is None]
    representation = build(node, "representation")
    if not unknown or not hasattr(representation, "statistics"):
        return options
    before = stored_config(Path(options.run_dir), options.ckpt, options.init)
    if before and before["representation"]["_target_"] == node["_target_"]:
        found = before["representation"]
    else:
        try:
            shards = Shards.open(patterns, store, (options.data.get("reading") or {}).get("audio_member"))
            found = representation.statistics(_clips(shards, options.crop, options.seed))
        except (ValueError, RemoteError) as error:
            raise ConfigError(f"representation.{error}") from error
    measured = {name: found[name] for name in unknown if name in found}
    return replace(options, representation={**node, **measured})


def _clips(shards: Shards, crop: CropFormat, seed: int) -> list[Tensor]:
    clips = read_in_order(shards, crop.sample_rate, crop.channels, crop.num_samples, [], seed=seed)
    return [samples[:, : clip.num_valid] for clip, samples in islice(clips, NUM_CLIPS) if clip.num_valid]
