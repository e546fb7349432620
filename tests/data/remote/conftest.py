"""A web server on loopback that does what it is told to do wrong."""

import contextlib
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from audio_diffusion.data.remote import RemoteStore

Fault = Callable[["Handler", bytes, int, int], None]
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Handler(BaseHTTPRequestHandler):
    """Serves the server's objects with ranges; an object's fault takes its place while it lasts."""

    protocol_version = "HTTP/1.1"
    server: "WebServer"

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        data = self.server.objects.get(name)
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        with self.server.lock:
            self.server.requests.append((self.command, self.path, asked and asked[0]))
            fault, times = self.server.faults.get(name, (None, 0))
            self.server.faults[name] = (fault, times - 1)
        start, stop = (int(asked[1]), min(int(asked[2]) + 1, len(data or b""))) if asked else (0, len(data or b""))
        if fault and times > 0:
            fault(self, data or b"", start, stop)
        elif data is None:
            self.answer(404, b"no such thing")
        elif asked and start >= len(data):
            self.answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
        else:
            self.part(data, start, stop, bool(asked))

    do_HEAD = do_GET

    def part(self, data: bytes, start: int, stop: int, ranged: bool = True) -> None:
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if ranged else {}
        self.answer(206 if ranged else 200, data[start:stop], **headers)

    def answer(self, status: int, body: bytes, length: int | None = -1, **headers: str) -> None:
        """``length``: what Content-Length says; None: nothing, the body ends with the connection."""
        self.send_response(status)
        if data := self.server.objects.get(self.path.partition("?")[0]):
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
            self.send_header(name, value)
        if length is None or length > len(body):
            self.send_header("Connection", "close")
            self.close_connection = True
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class WebServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, tuple[Fault | None, float]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.lock, self.released = threading.Lock(), threading.Event()

    def put(self, name: str, data: bytes | None, fault: Fault | None = None, times: float = float("inf")) -> str:
        """Serves an object, with a fault for the first ``times`` requests; its address."""
        if data is not None:
            self.objects[f"/{name}"] = data
        self.faults[f"/{name}"] = (fault, times)
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what is tested


def status(code: int, **headers: str) -> Fault:
    return lambda handler, data, start, stop: handler.answer(
        code, b"oops", **{k.replace("_", "-"): v for k, v in headers.items()}
    )


def cut_off(with_length: bool, ranged: bool = True) -> Fault:
    """Half of the body, then the end of the connection."""

    def fault(handler: Handler, data: bytes, start: int, stop: int) -> None:
        body = data[start : (start + stop) // 2]
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if ranged else {}
        handler.answer(206 if ranged else 200, body, stop - start if with_length else None, **headers)

    return fault


def stall(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Says that bytes come, and sends none."""
    handler.answer(206, b"", stop - start, **{"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
    handler.server.released.wait(20)


def drip(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Sends a byte at a time."""
    handler.answer(206, b"", stop - start, **{"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
    with contextlib.suppress(OSError):
        for at in range(start, stop):
            handler.wfile.write(data[at : at + 1])
            handler.wfile.flush()
            if handler.server.released.wait(0.02):
                return


def page(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.answer(200, PAGE, **{"Content-Type": "text/html; charset=utf-8"})


def page_as_range(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.answer(206, PAGE)


def no_ranges(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.answer(200, data)


def no_ranges_no_length(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.answer(200, data, None)


def flipped(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.part(bytes(byte ^ 1 for byte in data), start, stop)


def shifted(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.part(data, start - 1, stop - 1)


def reset(handler: Handler, data: bytes, start: int, stop: int) -> None:
    """Half of the body, then a reset of the connection."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    handler.wfile.write(data[start : (start + stop) // 2])
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


@pytest.fixture
def fault() -> SimpleNamespace:
    """What a server can do wrong, by name."""
    return SimpleNamespace(
        status=status, cut_off=cut_off, stall=stall, drip=drip, page=page, page_as_range=page_as_range,
        no_ranges=no_ranges, no_ranges_no_length=no_ranges_no_length, flipped=flipped, shifted=shifted, reset=reset,
    )  # fmt: skip


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path: Path) -> RemoteStore:
    """With a cache, and times for a server on loopback."""
    return RemoteStore(str(tmp_path / "cache"), stall_s=0.4, timeout_s=5, retries=2, backoff_s=0.01)


@pytest.fixture
def bare() -> RemoteStore:
    """Without a cache."""
    return RemoteStore(None, stall_s=0.4, timeout_s=5, retries=2, backoff_s=0.01)
