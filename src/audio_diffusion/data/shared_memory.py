"""Passes batches from workers to the training process without a copy, in shared memory."""

import mmap
import os
import uuid
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_diffusion.data.batch import AudioBatch, Crop, collate

_opened: "weakref.WeakValueDictionary[str, SharedSlots]" = weakref.WeakValueDictionary()


class SharedSlots:
    """Slots for batches ``[B, C, T]`` in memory that all workers of a loader share with the process that created it.

    Each worker owns ``num_slots`` slots. It fills a free slot and sends its number; the receiver gets a tensor that
    shares the slot's memory. The slot becomes free when no such tensor is left. A worker without a free slot (because
    the receiver keeps many batches) uses ordinary memory, which costs an additional copy. The memory is anonymous: it
    does not count against the size of /dev/shm, which is small in containers.

    Args:
        num_workers: number of workers of the loader.
        num_slots: number of slots per worker: the batches that it prefetches, one in use, and one being filled.
        shape: (B, C, T).
    """

    def __init__(self, num_workers: int, num_slots: int, shape: tuple[int, int, int]):
        self.num_workers, self.num_slots, self.shape = num_workers, num_slots, shape
        self.id = uuid.uuid4().hex
        self._fd = os.memfd_create(f"audio_diffusion-{self.id}")
        os.ftruncate(self._fd, self._offset(num_workers, 0) + num_workers * num_slots)
        self._map()
        weakref.finalize(self, os.close, self._fd)

    def _offset(self, worker: int, slot: int) -> int:
        """Returns the offset of a slot in bytes; slots begin at a page boundary."""
        num_bytes = -(-4 * int(np.prod(self.shape)) // mmap.PAGESIZE) * mmap.PAGESIZE
        return (worker * self.num_slots + slot) * num_bytes

    def _map(self) -> None:
        self._memory = np.frombuffer(mmap.mmap(self._fd, 0), dtype=np.uint8)
        # one byte for each slot, which the worker sets and the receiver clears
        self._busy = self._memory[self._offset(self.num_workers, 0) :].reshape(self.num_workers, self.num_slots)
        _opened[self.id] = self

    def __getstate__(self) -> dict[str, Any]:
        from multiprocessing.reduction import DupFd  # not available on Windows

        return {**self.__dict__, "_fd": DupFd(self._fd), "_memory": None, "_busy": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fd = state["_fd"].detach()
        self._map()
        weakref.finalize(self, os.close, self._fd)

    def take(self, worker: int) -> int | None:
        """Reserves a free slot of this worker and returns its number; None if there is none."""
        free = np.flatnonzero(self._busy[worker] == 0)
        if not len(free):
            return None
        self._busy[worker, free[0]] = 1
        return int(free[0])

    def release(self, worker: int, slot: int) -> None:
        self._busy[worker, slot] = 0

    def tensor(self, worker: int, slot: int, lease: bool) -> Tensor:
        """Returns the slot as float32 ``[B, C, T]``; with ``lease``, it is released when no such tensor is left."""
        start = self._offset(worker, slot)
        array = self._memory[start : start + 4 * int(np.prod(self.shape))].view(np.float32).reshape(self.shape)
        return torch.from_numpy(np.asarray(_Lease(self, worker, slot, array)) if lease else array)


class _Lease:
    """Keeps a slot reserved while an array uses its memory: numpy holds this object as the array's base."""

    def __init__(self, slots: SharedSlots, worker: int, slot: int, array: np.ndarray):
        self._slots, self._place = slots, (worker, slot)
        self.__array_interface__ = array.__array_interface__

    def __del__(self) -> None:
        self._slots.release(*self._place)


class Parcel:
    """A filled slot in transit: it is pickled as the slot's number and unpickled as an ``AudioBatch``."""

    def __init__(
        self, slots: SharedSlots, worker: int, slot: int, clips: list[Crop], with_label: bool, fields: tuple[str, ...]
    ):
        self._contents = (slots.id, worker, slot, clips, with_label, fields)

    def __reduce__(self) -> tuple:
        return _open, self._contents


def _open(id: str, worker: int, slot: int, clips: list[Crop], with_label: bool, fields: tuple[str, ...]) -> AudioBatch:
    return collate(_opened[id].tensor(worker, slot, lease=True), clips, with_label, fields)
