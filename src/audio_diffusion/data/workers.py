"""DataLoader workers: forked from a process without threads, shielded from a cluster's signals, ended with the trainer.

A process that is forked while another thread holds a lock (of malloc, of the import system, of a logger) inherits the
lock locked, and may hang before its first line of Python. A training process has threads by the time workers are
started, those of W&B, the heartbeat, gloo and the progress bar among them. Workers are therefore started by a fork
server: a process of its own, with a single thread, that has imported what workers need.
"""

import atexit
import contextlib
import copy
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import time
import types
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import _utils as loader_utils

from audio_diffusion.checkpoints import signals
from audio_diffusion.data.shared_memory import SharedSlots

if sys.platform != "win32":
    from multiprocessing import forkserver

START_METHODS = sorted(multiprocessing.get_all_start_methods())
DEFAULT_START = "forkserver" if "forkserver" in START_METHODS else "spawn"
_PRELOADED = ["audio_diffusion.data.pipeline", "audio_diffusion.data.workers", "torchaudio"]
_STARTS = 3  # attempts to start a worker that does not answer, before the run is ended
#: seconds until a worker that was started has to answer. Spawned ones import torch first, from a slow disk maybe.
ANSWERS_WITHIN_S = {"fork": 60.0, "forkserver": 60.0, "spawn": 600.0}


def prepare(start: str | None = None) -> None:
    """Starts the fork server, which imports the workers' modules while the caller continues; further calls do nothing.

    Args:
        start: how the workers will be started: "fork", "forkserver", "spawn", or None for ``DEFAULT_START``.
    """
    if (start or DEFAULT_START) != "forkserver":
        return
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(path for path in sys.path if path)  # the server does not take sys.path over by itself
    with signals.shielded(tracked=True), _without_main(), _environment({**one_thread, "PYTHONPATH": paths}):
        forkserver.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that are started inside do not run the program's file again, as multiprocessing has them do.

    Workers need nothing of it; its imports take seconds, and a file without ``if __name__ == "__main__"`` would start
    training in each worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _FindsMain(pickle.Pickler):
    """Pickles to nowhere; ``found`` says whether a class or function of the program's own file is part of it."""

    found = False

    def write(self, data: Any) -> None:
        """Discards the data."""

    def __init__(self) -> None:
        super().__init__(self)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, SharedSlots):  # can only be pickled for a process that is being started
            return int, ()
        if isinstance(obj, type | types.FunctionType) and obj.__module__ == "__main__":
            self.found = True
        return NotImplemented


def _needs_main(dataset: Any) -> bool:
    finder = _FindsMain()
    try:
        finder.dump(dataset)
    except Exception:  # it cannot be pickled: the start of the worker says so, and why
        return True
    return finder.found


class ShieldedLoader(DataLoader):
    """A DataLoader whose workers ignore Ctrl-C and all signals that stop a run: the training process ends them.

    A worker that does not answer in ``ANSWERS_WITHIN_S`` is replaced, twice at most. Where the training process is
    gone, its workers end too.

    Raises:
        RuntimeError: from ``iter``, naming the worker, if it does not answer even then.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.num_workers:
            return super().__iter__()
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # runs before multiprocessing's own, which would wait for a worker that is stuck
        given = self.multiprocessing_context
        start = given if isinstance(given, str) else given.get_start_method() if given is not None else DEFAULT_START
        prepare(start)
        hidden = contextlib.nullcontext() if start == "fork" or _needs_main(self.dataset) else _without_main()
        context = copy.copy(multiprocessing.get_context(start))
        processes = _Processes(context)
        answers, self.worker_init_fn = _answers(context)
        self.multiprocessing_context = context
        try:
            with signals.shielded(tracked=start != "fork"), hidden:
                batches = super().__iter__()
                processes.wait_for_all(batches, answers, ANSWERS_WITHIN_S[start])
        finally:
            self.worker_init_fn = None
            self.multiprocessing_context = given
        for worker in getattr(batches, "_workers", ()):
            worker.terminate = worker.kill  # one that has not begun yet when all is over ignores SIGTERM already
        return batches


class _Processes:
    """Creates the processes of a context, and can create each of them again."""

    def __init__(self, context: Any):
        self._make, self._calls = context.Process, {}  # type: ignore[var-annotated]
        context.Process = self._made

    def _made(self, *args: Any, **kwargs: Any) -> BaseProcess:
        process = self._make(*args, **kwargs)
        self._calls[process] = (args, kwargs)
        return process

    def wait_for_all(self, batches: Any, answers: Any, seconds: float) -> None:
        """Returns once every worker has answered or ended; those that are overdue are replaced."""
        workers: list[BaseProcess] = batches._workers
        starts, overdue_at = [1] * len(workers), [time.monotonic() + seconds] * len(workers)
        silent = set(range(len(workers)))
        while silent:
            if answers.poll(min(1.0, max(0.0, min(overdue_at[i] for i in silent) - time.monotonic()))):
                silent.discard(int.from_bytes(answers.recv_bytes(), "little"))
            silent = {i for i in silent if workers[i].is_alive()}  # of one that has ended the loader says so
            for i in [i for i in silent if time.monotonic() >= overdue_at[i]]:
                name = f"data: worker {i} (process {workers[i].pid}) did not begin within {seconds:g} s of its start"
                workers[i].kill()
                workers[i].join()
                if starts[i] == _STARTS:
                    raise RuntimeError(
                        f"{name}, nor did the {_STARTS - 1} started before it. Look at this machine's memory, and at "
                        "the disk that Python's packages are read from; data.num_workers=0 reads without workers"
                    )
                print(f"{name}; another one is started", file=sys.stderr, flush=True)
                workers[i] = self._again(workers[i])
                starts[i], overdue_at[i] = starts[i] + 1, time.monotonic() + seconds
                # the loader's own watch, by process id, over workers that die
                loader_utils.signal_handling._remove_worker_pids(id(batches))
                loader_utils.signal_handling._set_worker_pids(id(batches), tuple(w.pid or 0 for w in workers))

    def _again(self, process: BaseProcess) -> BaseProcess:
        args, kwargs = self._calls.pop(process)
        again = self._made(*args, **kwargs)
        again.daemon = True
        again.start()
        return again


def _answers(context: Any) -> tuple[Any, "_Begin"]:
    """Creates the receiver of the answers of started workers, and the callable that sends them."""
    reader, writer = context.Pipe(duplex=False)
    return reader, _Begin(writer)


class _Begin:
    """The first thing a worker does: ignores the signals for good, ends with the training process, and answers.

    It also takes over the environment of the training process: that of the fork server may be older.
    """

    def __init__(self, writer: Any):
        self._writer, self._environment = writer, dict(os.environ)

    def __call__(self, worker_id: int) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        for signum in (signal.SIGINT, *signals.STOP_SIGNALS):
            signal.signal(signum, signal.SIG_IGN)
        if signals.STUCK_SIGNAL is not None:
            faulthandler.register(signals.STUCK_SIGNAL)  # prints its stacks when it is asked to
        signals.end_with_parent()
        self._writer.send_bytes(worker_id.to_bytes(4, "little"))  # short: written as one, whoever else writes
        self._writer.close()


def _end_workers() -> None:
    """Kills workers that did not end on request, such as those that wait for a read that never returns."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.join(1)
            child.kill()
