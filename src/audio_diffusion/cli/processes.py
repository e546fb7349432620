"""Generates batches of samples in this process, or in one process for each of several devices."""

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from audio_diffusion.checkpoints import signals
from audio_diffusion.cli.options import SampleOptions
from audio_diffusion.cli.own_parts import sampler_of
from audio_diffusion.cli.requests import guidance_of
from audio_diffusion.cli.samples import Result, Sample
from audio_diffusion.cli.tasks.task import Task, make_task
from audio_diffusion.inference.checkpoint_reader import device_of
from audio_diffusion.inference.loading import load as load_model
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import ConfigError, build
from audio_diffusion.packing.parallel import in_order


def devices_of(device: str, count: int) -> list[str]:
    """Returns the device of each process.

    Raises:
        ConfigError: if there are fewer devices than ``count``.
    """
    if count < 1:
        raise ConfigError(f"devices: expected at least 1, got {count}")
    device = str(device_of(device))
    if device != "cuda" or count == 1:
        if device.startswith("cuda:") and count > 1:
            raise ConfigError(f"devices: got {count}, but device={device} is one; expected device=cuda or auto")
        return [device] * count
    if count > torch.cuda.device_count():
        raise ConfigError(f"devices: got {count}, there are {torch.cuda.device_count()} GPUs")
    return [f"cuda:{i}" for i in range(count)]


def load(options: SampleOptions, device: str) -> Model:
    """Loads the model on a device, with the sampler and guidance of the options."""
    load_on = partial(load_model, weights=options.weights, device=device, trust=options.trust)
    model = load_on(options.ckpt)
    weak = load_on(options.weak_ckpt) if options.weak_ckpt else None
    given = options.sampler
    sampler = build(sampler_of(model.origin.nodes["sampler"], given), "sampler") if given else None
    model = model.using(guidance=guidance_of(model, options, weak))
    return replace(model, sampler=sampler) if sampler else model  # sample.py warns once if it produces wrong levels


_worker: tuple[Model, Task] | None = None  # state of a worker process


def _begin(options: SampleOptions, devices: Any) -> None:
    """Initialises a worker process."""
    global _worker
    signals.end_with_parent()  # otherwise a SIGTERM to all processes would end only the parent
    torch.set_num_threads(max(1, torch.get_num_threads() // options.devices))
    _worker = load(options, devices.get()), make_task(options.task, options.record())


def _work(batch: bytes) -> bytes | str:
    """Generates a batch in a worker process. A user's mistake is returned as its message.

    Batch and results are passed as bytes: in shared memory each clip would be an open file.
    """
    assert _worker is not None
    model, task = _worker
    try:
        return pickle.dumps(task.perform(model, pickle.loads(batch)))
    except ValueError as error:
        return str(error)


def _submit(pool: ProcessPoolExecutor, batch: list[Sample]) -> Future[bytes | str]:
    """Hands a batch to a worker process. Only this process handles Ctrl-C.

    No batch is cancelled later: the pool's thread prints a traceback for a cancelled one when processes are killed.
    """
    with signals.shielded(tracked=True):
        return pool.submit(_work, pickle.dumps(batch))


def run(
    model: Model, task: Task, options: SampleOptions, work: Sequence[list[Sample]], devices: list[str]
) -> Iterator[list[Result]]:
    """Yields the results of each batch, in order, from this process or from one for each of several devices.

    Raises:
        ValueError: for options that the task or the model does not have.
        BrokenProcessPool: if a process was killed.
    """
    if len(devices) == 1:
        yield from (task.perform(model, batch) for batch in work)
        return
    context = multiprocessing.get_context("spawn")  # a GPU cannot be used in a forked process
    places = context.Queue()
    for device in devices:
        places.put(device)
    options = replace(options, ckpt=str(model.source))  # a run's folder may have a newer checkpoint in the meantime
    with ProcessPoolExecutor(len(devices), context, _begin, (options, places)) as pool:
        try:
            for result in in_order(partial(_submit, pool), work, 2 * len(devices)):
                if isinstance(result, str):
                    pool.shutdown(cancel_futures=True)
                    raise ConfigError(result)
                yield pickle.loads(result)
        except (KeyboardInterrupt, GeneratorExit):  # the results of running batches are not needed
            for process in multiprocessing.active_children():
                process.kill()
            raise
