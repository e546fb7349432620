"""Ours, as training has it, beside what is written by hand: they share an interpreter."""

import logging
from collections.abc import Iterator

import byhand
import lightning as L
import torch
from serve import Row, serve

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.data.training_data import CropFormat

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def datamodule(row: Row, position: int = 0) -> AudioDataModule:
    """The public class, set up as ``Trainer.fit`` does it, as if resumed at a position of the stream."""
    data = AudioDataModule(
        train=f"{row.corpus}/shards/{row.encoding}",
        val=None,
        crop=CropFormat(row.sample_rate, row.channels, row.num_samples),
        batch_size=row.batch_size,
        max_steps=10**9,
        num_workers=row.num_workers,
    )
    data.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data.prepare_data()
    data.setup("fit")
    if position:
        data.load_state_dict({"position": position, "step": 0, "order": data.mixture.fingerprint()})
    return data


def ours(row: Row) -> Iterator[AudioBatch]:
    """The DataLoader that training gets: order, crops, resampling, batches; with workers, their transfer."""
    for batch in datamodule(row).train_dataloader():
        assert not batch.skipped
        yield batch


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve({"ours": ours, **byhand.WAYS})
