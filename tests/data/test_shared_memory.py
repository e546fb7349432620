"""Batches reach the receiver in the sender's own memory, which is used again exactly when nobody holds it."""

import gc
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_diffusion.data.batch import AudioBatch, Crop
from audio_diffusion.data.shared_memory import Parcel, SharedSlots

SHAPE = (2, 1, 5000)  # no whole number of pages


@pytest.fixture
def slots() -> SharedSlots:
    return SharedSlots(num_workers=2, num_slots=3, shape=SHAPE)


def send(slots: SharedSlots, worker: int, value: float) -> AudioBatch:
    """What a worker and the receiver do, in one process."""
    slot = slots.take(worker)
    assert slot is not None
    slots.tensor(worker, slot, lease=False).fill_(value)
    clips = [Crop(i, 0, str(i), 5000) for i in range(2)]
    return pickle.loads(pickle.dumps(Parcel(slots, worker, slot, clips, False, ())))


def test_the_receiver_reads_the_senders_memory(slots: SharedSlots) -> None:
    batch = send(slots, 1, 0.5)
    assert batch.audio.shape == SHAPE
    assert (batch.audio == 0.5).all()
    slots.tensor(1, 0, lease=False).fill_(2)
    assert (batch.audio == 2).all()
    assert batch.positions == (0, 1)


def test_slots_do_not_overlap(slots: SharedSlots) -> None:
    batches = [send(slots, worker, 10 * worker + i) for i in range(3) for worker in range(2)]
    assert [float(batch.audio.unique()) for batch in batches] == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize("keep", [lambda x: x, lambda x: x[1:], lambda x: x.numpy(), lambda x: x.view(-1)[3]])
def test_a_slot_is_free_once_nothing_over_it_is_left(slots: SharedSlots, keep) -> None:  # type: ignore[no-untyped-def]
    batch = send(slots, 0, 1)
    kept = keep(batch.audio)
    taken = [slots.take(0), slots.take(0), slots.take(0)]
    assert taken == [1, 2, None]
    del batch
    gc.collect()
    assert slots.take(0) is None
    del kept
    gc.collect()
    assert slots.take(0) == 0
    assert slots.take(1) == 0  # the other worker's are its own


def test_a_model_that_keeps_a_view_for_backward_keeps_the_slot(slots: SharedSlots) -> None:
    batch, weight = send(slots, 0, 3), torch.ones((), requires_grad=True)
    loss = (weight * batch.audio).sum()
    del batch
    gc.collect()
    assert slots.take(0) == 1
    loss.backward()
    assert weight.grad == 3 * 10_000
    del loss
    gc.collect()
    assert slots.take(0) == 0


def _fill(slots: SharedSlots, worker: int, queue) -> None:  # type: ignore[no-untyped-def]
    slot = slots.take(worker)
    assert slot is not None
    slots.tensor(worker, slot, lease=False).copy_(torch.arange(10_000.0).reshape(SHAPE))
    queue.put(Parcel(slots, worker, slot, [Crop(0), Crop(1)], False, ()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_between_processes(slots: SharedSlots, method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=_fill, args=(slots, 1, queue))
    worker.start()
    batch = queue.get(timeout=60)
    worker.join()
    assert torch.equal(batch.audio, torch.arange(10_000.0).reshape(SHAPE))
    assert slots.take(1) == 1  # the worker's mark is seen here


def open_memory() -> int:
    """Pieces of shared memory that this process holds open."""
    folder = Path("/proc/self/fd")
    return sum("audio_diffusion" in os.readlink(fd) for fd in folder.iterdir() if fd.is_symlink())


def test_memory_is_given_back() -> None:
    before = open_memory()
    others: list[SharedSlots] = [SharedSlots(1, 1, SHAPE) for _ in range(5)]
    assert open_memory() == before + 2 * 5  # Python keeps a descriptor of its own for each map
    held: Tensor = others[0].tensor(0, 0, lease=True)
    others.clear()
    gc.collect()
    assert open_memory() == before + 2
    assert held.shape == SHAPE
    del held
    gc.collect()
    assert open_memory() == before


def test_arrays_are_float32_and_writable(slots: SharedSlots) -> None:
    audio = slots.tensor(0, 0, lease=True)
    assert audio.dtype == torch.float32
    audio += 1
    assert np.isfinite(audio.numpy()).all()
