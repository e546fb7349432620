"""DataLoader workers that start safely, ignore a cluster's signals, and end with the training process.

A process that is forked while another thread holds a lock (of malloc, the import system or a logger) inherits the
locked lock, and may hang before its first line of Python. A training process has several threads when workers are
started, such as those of W&B, the heartbeat, gloo and the progress bar. Workers are therefore started by a fork server,
a separate process with a single thread that has already imported the modules that workers need.
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
_STARTS = 3  # attempts to start a worker that does not answer, before the run ends
#: seconds within which a started worker must answer; spawned ones first import torch, possibly from a slow disk
ANSWERS_WITHIN_S = {"fork": 60.0, "forkserver": 60.0, "spawn": 600.0}


def prepare(start: str | None = None) -> None:
    """Starts the fork server, which imports the workers' modules while the caller continues; further calls do nothing.

    Args:
        start: how the workers will be started: "fork", "forkserver", "spawn", or None for ``DEFAULT_START``.
    """
    if (start or DEFAULT_START) != "forkserver":
        return
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(path for path in sys.path if path)  # the server does not inherit sys.path
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
    """Context manager in which started processes do not run the program's file again, as multiprocessing's do.

    Workers do not need it; its imports take seconds, and a file without ``if __name__ == "__main__"`` would start
    training in each worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _FindsMain(pickle.Pickler):
    """A pickler without output; ``found`` is whether the object uses a class or function of the program's own file."""

    found = False

    def write(self, data: Any) -> None:
        """Discards the data."""

    def __init__(self) -> None:
        super().__init__(self)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, SharedSlots):  # it can only be pickled for a process that is being started
            return int, ()
        if isinstance(obj, type | types.FunctionType) and obj.__module__ == "__main__":
            self.found = True
        return NotImplemented


def _needs_main(dataset: Any) -> bool:
    finder = _FindsMain()
    try:
        finder.dump(dataset)
    except Exception:  # if it cannot be pickled, starting the worker raises an error with the reason
        return True
    return finder.found


class ShieldedLoader(DataLoader):
    """A DataLoader whose workers ignore Ctrl-C and all signals that stop a run; the training process ends them.

    A worker that does not answer within ``ANSWERS_WITHIN_S`` is replaced, at most twice. If the training process ends,
    its workers end too.

    Raises:
        RuntimeError: from ``iter``, if a worker and its replacements do not answer.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.num_workers:
            return super().__iter__()
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # before multiprocessing's, which would wait for a stuck worker
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
            worker.terminate = worker.kill  # a worker that has not begun when the loader ends already ignores SIGTERM
        return batches


class _Processes:
    """Creates the processes of a multiprocessing context, and can create each of them again."""

    def __init__(self, context: Any):
        self._make, self._calls = context.Process, {}  # type: ignore[var-annotated]
        context.Process = self._made

    def _made(self, *args: Any, **kwargs: Any) -> BaseProcess:
        process = self._make(*args, **kwargs)
        self._calls[process] = (args, kwargs)
        return process

    def wait_for_all(self, batches: Any, answers: Any, seconds: float) -> None:
        """Returns when every worker has answered or ended; workers that are overdue are replaced."""
        workers: list[BaseProcess] = batches._workers
        starts, overdue_at = [1] * len(workers), [time.monotonic() + seconds] * len(workers)
        silent = set(range(len(workers)))
        while silent:
            if answers.poll(min(1.0, max(0.0, min(overdue_at[i] for i in silent) - time.monotonic()))):
                silent.discard(int.from_bytes(answers.recv_bytes(), "little"))
            silent = {i for i in silent if workers[i].is_alive()}  # the loader reports workers that have ended
            for i in [i for i in silent if time.monotonic() >= overdue_at[i]]:
                name = f"data: worker {i} (process {workers[i].pid}) did not answer within {seconds:g} s of its start"
                workers[i].kill()
                workers[i].join()
                if starts[i] == _STARTS:
                    raise RuntimeError(
                        f"{name}; the {_STARTS - 1} started before it did not answer either. Check this machine's "
                        "memory and the disk with Python's packages; data.num_workers=0 reads without workers"
                    )
                print(f"{name}; starting another one", file=sys.stderr, flush=True)
                workers[i] = self._again(workers[i])
                starts[i], overdue_at[i] = starts[i] + 1, time.monotonic() + seconds
                # the loader's own check for dead workers, by process id
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
    """Runs first in each worker: ignores signals permanently, ties the worker to the training process, and answers.

    It also copies the environment of the training process, since that of the fork server may be older.
    """

    def __init__(self, writer: Any):
        self._writer, self._environment = writer, dict(os.environ)

    def __call__(self, worker_id: int) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        for signum in (signal.SIGINT, *signals.STOP_SIGNALS):
            signal.signal(signum, signal.SIG_IGN)
        if signals.STUCK_SIGNAL is not None:
            faulthandler.register(signals.STUCK_SIGNAL)  # prints the worker's stacks on request
        signals.end_with_parent()
        self._writer.send_bytes(worker_id.to_bytes(4, "little"))  # short enough to be written atomically
        self._writer.close()


def _end_workers() -> None:
    """Kills workers that did not end on request, for example because a read never returns."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.join(1)
            child.kill()
