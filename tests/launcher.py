"""Runs the project's programs without their ten seconds of imports: a server imports once, and forks for each run.

    python tests/launcher.py FD     # serves any number of clients of a listening socket, until its stdin closes

A client writes requests, one json object a line, and reads answers likewise. The first answer, {"ready": pid}, comes
once the imports are done. A request is {"argv": ["train.py", ...], "cwd": .., "env": {..}, "log": file, "errors":
file}, where stderr goes to "errors" and stdout to "log", which may be the same; the answers are {"started": pid} and,
whenever a child ends, {"ended": pid, "status": exit status, or -signal}. Each child leads a session of its own, has
no threads yet but those a fork leaves, and runs the script as ``__main__``: what it does from there on is the real
program. Tests use it through the fixture ``launch``; all processes of pytest-xdist share one server.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from wandb.sdk.data_types._private import MEDIA_TMP

ROOT = Path(__file__).parents[1]


def child(request: dict) -> None:
    """Becomes the program asked for."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    null = os.open(os.devnull, os.O_RDONLY)
    log, errors = (os.open(request[to], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for to in ("log", "errors"))
    for target, source in ((0, null), (1, log), (2, errors)):
        os.dup2(source, target)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
    MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")  # W&B makes it at import, and the first child to end removes it
    script, *arguments = request["argv"]
    sys.argv = [str(ROOT / script), *arguments]
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)  # as any interpreter does
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # as at the end of any interpreter: threads are waited for, then exit functions called
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def prepare() -> None:
    """Does once what every program would do anew: imports, also those that come late in a run, and parsers' tables."""
    sys.path.insert(0, str(ROOT))
    import audio_diffusion.callbacks.cluster.heartbeat
    import audio_diffusion.callbacks.cluster.preemption
    import audio_diffusion.callbacks.diagnostics
    import audio_diffusion.callbacks.likelihood
    import audio_diffusion.callbacks.sampling
    import audio_diffusion.callbacks.skipped
    import audio_diffusion.callbacks.throughput
    import audio_diffusion.cli.evaluate
    import audio_diffusion.cli.export
    import audio_diffusion.cli.make_shards
    import audio_diffusion.cli.sample
    import audio_diffusion.cli.train
    import audio_diffusion.data.datamodule
    import audio_diffusion.networks.unet1d
    import audio_diffusion.training.module  # noqa: F401

    for late in ("gcsfs", "s3fs", "lightning.pytorch.loggers", "matplotlib.backends.backend_agg"):
        with contextlib.suppress(ImportError):  # extras; Lightning's loggers import those that are installed
            importlib.import_module(late)
    import PIL.Image
    from hydra import compose, initialize_config_dir

    from audio_diffusion.cli.config import CONFIG_DIR

    PIL.Image.init()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        compose(
            "train",
            overrides=["data.train=a/b", "model.widths=[8,16]", "sampler=ddim", "name=one", "training.ema_decay=0.9"],
        )
    gc.collect()
    gc.freeze()  # children neither search these objects for garbage nor copy the memory that they are in


class Client:
    """A connected process of the tests: its unfinished line, and the answers to it."""

    def __init__(self, connection: socket.socket):
        self.connection, self.pending = connection, b""
        self.say({"ready": os.getpid()})

    def say(self, answer: dict) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self.connection.sendall((json.dumps(answer) + "\n").encode())

    def requests(self) -> list[dict] | None:
        """The requests that have come; None at the end."""
        data = self.connection.recv(65536)
        *lines, self.pending = (self.pending + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None


def serve(listener: socket.socket) -> None:
    """Forks a child for each request of each client, and tells the client when it has ended."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, Client] = {}
    owners: dict[int, Client] = {}  # of the children that run
    while True:
        ready, _, _ = select.select([0, woken, listener, *clients], [], [])
        if 0 in ready and not os.read(0, 65536):
            return
        if woken in ready:
            os.read(woken, 4096)
            for pid, status in ended_children():
                if client := owners.pop(pid, None):
                    client.say({"ended": pid, "status": status})
        if listener in ready:
            connection, _ = listener.accept()
            clients[connection.fileno()] = Client(connection)
        for fd in [fd for fd in ready if fd in clients]:
            client = clients[fd]
            requests = client.requests()
            if requests is None:
                clients.pop(fd).connection.close()
                for pid in [pid for pid, owner in owners.items() if owner is client]:
                    del owners[pid]
                    os.killpg(pid, signal.SIGKILL)  # nobody waits for it
            for request in requests or ():
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for other in (woken, wake, listener.fileno(), *clients):
                        os.close(other)
                    child(request)
                owners[pid] = client
                client.say({"started": pid})


def ended_children() -> Iterator[tuple[int, int]]:
    """The children that have ended since the last call: pid, and exit status or -signal."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def main() -> None:
    """Prepares, and serves."""
    prepare()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ["WDS_SECURE"] = "1"
    main()
