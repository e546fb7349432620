"""Clips become one batch whose tensors move together."""

from functools import partial

import pytest
import torch

from audio_diffusion.data.batch import AudioBatch, Clip, Skipped, collate

SKIPPED = Skipped("s.tar", "bad", "broken")
CLIPS = [
    Clip(7, "a", torch.ones(2, 5), 3, 1),
    Clip(8, "bad", None, 0, -1, SKIPPED),
    Clip(9, "", None, 0, -1),
    Clip(10, "b", torch.full((2, 5), 0.5), 5, 0),
]
to_batch = partial(collate, channels=2, num_samples=5, with_label=True)


def test_every_slot_is_filled_or_silent_and_says_so() -> None:
    batch = to_batch(CLIPS)
    assert len(batch) == 4
    assert batch.audio.shape == (4, 2, 5)
    assert batch.audio.dtype == torch.float32
    assert batch.audio[:, 0, 0].tolist() == [1, 0, 0, 0.5]
    assert not batch.audio[1:3].any()
    assert batch.mask.shape == (4, 1, 5)
    assert batch.mask.dtype == torch.bool
    assert batch.mask[:, 0].int().tolist() == [[1, 1, 1, 0, 0], [0] * 5, [0] * 5, [1] * 5]
    assert batch.valid.tolist() == [True, False, False, True]
    assert batch.positions == (7, 8, 9, 10)
    assert batch.keys == ("a", "bad", "", "b")
    assert batch.skipped == (SKIPPED,)


def test_labels_are_a_condition_only_where_there_are_classes() -> None:
    batch = to_batch(CLIPS)
    assert batch.label is not None
    assert batch.label.dtype == torch.int64
    assert batch.label.tolist() == [1, -1, -1, 0]
    assert batch.cond == {"label": batch.label}
    unlabelled = to_batch(CLIPS, with_label=False)
    assert unlabelled.label is None
    assert unlabelled.cond == {}


def tensors(batch: AudioBatch) -> list[torch.Tensor]:
    assert batch.label is not None
    return [batch.audio, batch.mask, batch.valid, batch.label]


def test_all_tensors_move_and_the_rest_stays() -> None:
    batch = to_batch(CLIPS)
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in tensors(moved))
    assert all(tensor.device.type == "cpu" for tensor in tensors(batch))
    assert (moved.positions, moved.keys, moved.skipped) == (batch.positions, batch.keys, batch.skipped)
    assert to_batch(CLIPS, with_label=False).to("meta").label is None


def test_all_tensors_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.to("meta"))  # needs a GPU
    assert all(tensor.device.type == "meta" for tensor in tensors(to_batch(CLIPS).pin_memory()))
