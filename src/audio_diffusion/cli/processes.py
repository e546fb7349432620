"""Batches of samples made by this process, or by one for each of several devices."""

import multiprocessing
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from audio_diffusion.checkpoints import signals
from audio_diffusion.cli.requests import Sample, guidance_of
from audio_diffusion.cli.results import Result
from audio_diffusion.cli.tasks import perform
from audio_diffusion.inference.checkpoint_reader import device_of
from audio_diffusion.inference.generator import Generator
from audio_diffusion.inference.loading import load as load_model
from audio_diffusion.inference.targets import ConfigError, build


def devices_of(device: str, count: int) -> list[str]:
    """Where each process works.

    Raises:
        ConfigError: if there are not so many.
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


def load(options: dict[str, Any], device: str) -> Generator:
    """The model on a device, its sampler and guidance as asked for."""
    load_on = partial(load_model, weights=options["weights"], device=device, trust=options["trust"])
    model = load_on(options["ckpt"])
    weak = options["weak_ckpt"] and load_on(options["weak_ckpt"])
    sampler = build(options["sampler"], "sampler") if "sampler" in options else None
    model = model.using(guidance=guidance_of(model, options, weak))
    return replace(model, sampler=sampler) if sampler else model  # sample.py says it, once, if its levels are wrong


_worker: tuple[Generator, dict[str, Any]] | None = None  # of a process of several


def _begin(options: dict[str, Any], devices: Any) -> None:
    """What a process of several does first."""
    global _worker
    signals.end_with_parent()  # a SIGTERM to all of them would otherwise end the first one alone
    torch.set_num_threads(max(1, torch.get_num_threads() // options["devices"]))
    _worker = load(options, devices.get()), options


def _work(batch: bytes) -> bytes | str:
    """A batch in a process of several, both ways as bytes: of shared memory each clip would be an open file. An error
    that the user can mend comes as its words."""
    assert _worker is not None
    try:
        return pickle.dumps(perform(*_worker, pickle.loads(batch)))
    except ValueError as error:
        return str(error)


def _in_order(pool: ProcessPoolExecutor, work: Sequence[list[Sample]], ahead: int) -> Iterator[bytes | str]:
    """What ``_work`` returns for each batch, in order; so many batches wait for a process that is free.

    None of them is ever cancelled: of a cancelled one the pool's thread prints a traceback when processes are killed.
    """
    handed_out: deque[Future[bytes | str]] = deque()
    for batch in work:
        with signals.shielded(tracked=True):  # a Ctrl-C is this process's to hear of
            handed_out.append(pool.submit(_work, pickle.dumps(batch)))
        if len(handed_out) >= 2 * ahead:
            yield handed_out.popleft().result()
    while handed_out:
        yield handed_out.popleft().result()


def run(
    model: Generator, options: dict[str, Any], work: Sequence[list[Sample]], devices: list[str]
) -> Iterator[list[Result]]:
    """The results of each batch, in order; by this process, or by one for each of several devices.

    Raises:
        ValueError: for options that the task or the model does not take.
        BrokenProcessPool: if a process was killed.
    """
    if len(devices) == 1:
        yield from (perform(model, options, batch) for batch in work)
        return
    context = multiprocessing.get_context("spawn")  # a GPU cannot be used in a forked process
    places = context.Queue()
    for device in devices:
        places.put(device)
    options = {**options, "ckpt": str(model.source)}  # a run's folder may have a newer one by now
    with ProcessPoolExecutor(len(devices), context, _begin, (options, places)) as pool:
        try:
            for result in _in_order(pool, work, ahead=len(devices)):
                if isinstance(result, str):
                    pool.shutdown(cancel_futures=True)
                    raise ConfigError(result)
                yield pickle.loads(result)
        except (KeyboardInterrupt, GeneratorExit):  # nobody waits for batches that are begun
            for process in multiprocessing.active_children():
                process.kill()
            raise
