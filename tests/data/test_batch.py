"""Clips become one batch whose tensors move together."""

import numpy as np
import pytest
import torch

from audio_diffusion.data.batch import AudioBatch, Crop, collate
from audio_diffusion.data.batch_split import BatchSplit
from audio_diffusion.data.faults import Skipped

SKIPPED = Skipped("s.tar", "bad", "corrupt", "broken")
CLIPS = [
    Crop(7, 0, "a", 3, 1.5, 4.0, 1, ("one", np.array([1.0, 2.0], dtype=np.float32))),
    Crop(8, 1, "bad", skipped=SKIPPED),
    Crop(9),
    Crop(10, 1, "b", 5, 0.0, 0.5, 0, ("two", np.array([3.0, 4.0], dtype=np.float32))),
]


def to_batch(clips: list[Crop], with_label: bool = True) -> AudioBatch:
    audio = torch.zeros(len(clips), 2, 5)
    audio[0], audio[3] = 1, 0.5
    return collate(audio, clips, with_label, ("caption", "e.npy"))


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
    assert batch.sources == (0, 1, -1, 1)
    assert batch.skipped == (SKIPPED,)


def test_labels_are_a_condition_only_where_there_are_classes() -> None:
    batch = to_batch(CLIPS)
    assert batch.label is not None
    assert batch.label.dtype == torch.int64
    assert batch.label.tolist() == [1, -1, -1, 0]
    assert batch.cond["label"] is batch.label
    unlabelled = to_batch(CLIPS, with_label=False)
    assert unlabelled.label is None
    assert unlabelled.cond.keys() == {"seconds_start", "seconds_total", "caption", "e.npy"}


def test_the_place_of_the_crop_and_the_fields_are_conditions_nan_or_empty_where_there_is_no_clip() -> None:
    cond = to_batch(CLIPS).cond
    nan = float("nan")
    for name, expected in [
        ("seconds_start", [1.5, nan, nan, 0.0]),
        ("seconds_total", [4.0, nan, nan, 0.5]),
        ("e.npy", [[1, 2], [nan, nan], [nan, nan], [3, 4]]),
    ]:
        value = cond[name]
        assert isinstance(value, torch.Tensor)
        assert torch.equal(value.nan_to_num(-7), torch.tensor(expected).nan_to_num(-7))
    assert cond["caption"] == ("one", "", "", "two")


def test_arrays_of_several_shapes_are_refused() -> None:
    other = CLIPS[3]._replace(fields=("two", np.zeros(3, dtype=np.float32)))
    with pytest.raises(ValueError, match=r"expected e\.npy to have one shape in all clips, got \(2,\) and \(3,\)"):
        to_batch([*CLIPS[:3], other])


def tensors(batch: AudioBatch) -> list[torch.Tensor]:
    assert batch.label is not None
    embedding = batch.fields["e.npy"]
    assert isinstance(embedding, torch.Tensor)
    return [batch.audio, batch.mask, batch.valid, batch.label, batch.seconds_start, batch.seconds_total, embedding]


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


def test_the_batch_is_said_in_its_parts() -> None:
    assert str(BatchSplit(64, 2, 4, 2)) == "batch: 64 = 2 nodes × 4 devices × 4 clips × 2 accumulated"
    assert str(BatchSplit(1, 1, 1, 1)) == "batch: 1 = 1 node × 1 device × 1 clip × 1 accumulated"


@pytest.mark.parametrize("batch_size", range(1, 30))
def test_the_sizes_named_work_and_none_between_them_does(batch_size: int) -> None:
    try:
        assert BatchSplit(batch_size, 2, 3, 1).clips * 6 == batch_size
    except ValueError as error:
        named = [int(word) for word in str(error).split("nearest valid: ")[1].split(" or ")]
        assert all(size % 6 == 0 and 0 < abs(size - batch_size) < 6 for size in named)
        assert len(named) == (2 if batch_size > 6 else 1)
