"""Makes requests with retries, time-outs and checks of the received data."""

import asyncio
import hashlib
import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from fsspec.asyn import get_loop

from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.remote.address import RemoteError, scheme_of
from audio_diffusion.data.remote.http import Bucket, Stat, Transport, Web, explain, looks_html

log = logging.getLogger(__name__)

T = TypeVar("T")
Range = tuple[str, int, int, str]  # address, start, stop, and the sha256, a `version_seal`, or ""

_MAX_BACKOFF_S = 30.0


class Errand:
    """The requests on behalf of one caller, which can be cancelled together."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.running: set[Future] = set()

    def stop(self) -> None:
        """Ends its requests, pauses and waiting for locks."""
        self.stopped.set()
        for future in list(self.running):
            future.cancel()


def version_seal(version: str) -> str:
    """Makes a seal from an object's version, used instead of a sha256: cached bytes of other versions are ignored."""
    return f"~{version}" if version else ""


def is_version(seal: str) -> bool:
    """Whether a seal is a version rather than a hash."""
    return seal.startswith("~")


def checked(data: bytes, num_bytes: int, sha256: str) -> bytes:
    """Returns the data if they match the request.

    Raises:
        RemoteError: if they have another length (``short``), another hash (``hash``) or are an HTML page (``html``).
    """
    sha256 = "" if is_version(sha256) else sha256
    if len(data) == num_bytes and (not sha256 or hashlib.sha256(data).hexdigest() == sha256):
        return data
    if looks_html(data):
        raise RemoteError(f"expected {num_bytes} bytes of data, got an HTML page", "html")
    if len(data) != num_bytes:
        raise RemoteError(f"expected {num_bytes} bytes, got {len(data)}", "short")
    raise RemoteError(f"expected the sha256 {sha256}, got {hashlib.sha256(data).hexdigest()}", "hash")


def bytes_of(part: Range) -> str:
    """Describes a range of an object, for messages."""
    return f" bytes {part[1]}-{part[2] - 1}"


class Fetcher:
    """Makes one process's requests, and counts them.

    Args:
        stall_s: seconds without data after which a request is aborted.
        timeout_s: seconds after which a request is aborted in any case.
        retries: number of attempts after the first one.
        backoff_s: pause before the second attempt, seconds.
        storage_options: arguments of each scheme's filesystem.
    """

    def __init__(
        self,
        stall_s: float,
        timeout_s: float,
        retries: int,
        backoff_s: float,
        storage_options: dict[str, dict[str, Any]],
    ):
        self.stall_s, self.timeout_s, self.retries, self.backoff_s = stall_s, timeout_s, retries, backoff_s
        self.storage_options = storage_options
        self.counts: Counter[str] = Counter()
        self._transports: dict[str, Transport] = {}
        self._lock = threading.Lock()

    def count(self, name: str, more: int = 1) -> None:
        """Adds ``more`` to a counter."""
        with self._lock:
            self.counts[name] += more

    def range(self, errand: Errand, part: Range) -> bytes:
        """Returns the bytes of a range; see ``retry`` for errors."""
        url, start, stop, sha256 = part

        def attempt() -> bytes:
            data = self.request(errand, url, lambda transport: transport.get(url, start, stop))
            self.count("bytes", len(data))
            return checked(data, stop - start, sha256)

        return self.retry(errand, url, attempt, bytes_of(part))

    def stat(self, errand: Errand, url: str) -> Stat:
        """Returns an object's size and version, if the server sends them; see ``retry`` for errors."""
        return self.retry(errand, url, lambda: self.request(errand, url, lambda transport: transport.stat(url)))

    def list(self, errand: Errand, pattern: str, recursive: bool = False) -> dict[str, int | None]:
        """Returns the objects in or below a folder, or those that match a glob, with their sizes in bytes if known; see
        ``retry`` for errors."""
        return self.retry(errand, pattern, lambda: self.request(errand, pattern, lambda t: t.list(pattern, recursive)))

    def stream(self, errand: Errand, url: str, sink: Callable[[bytes], object]) -> None:
        """Passes a whole object to ``sink``, piece by piece, in one attempt."""

        def counted(chunk: bytes) -> None:
            self.count("bytes", len(chunk))
            sink(chunk)

        self.request(errand, url, lambda transport: transport.stream(url, counted))

    def request(self, errand: Errand, url: str, make: Callable[[Transport], Coroutine[Any, Any, T]]) -> T:
        """Makes one request in fsspec's event loop.

        Raises:
            RemoteError: if it fails.
        """
        transport = self._transport(url)
        self.count("requests")

        async def explained() -> T:
            try:
                return await make(transport)
            except Exception as error:
                raise explain(error, url, self.stall_s) from None

        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(explained(), self.timeout_s), get_loop())
        errand.running.add(future)
        if errand.stopped.is_set():  # it was stopped before this request was registered
            future.cancel()
        try:
            return future.result()
        except CancelledError:
            raise RemoteError("stopped", "stopped") from None
        except (asyncio.TimeoutError, TimeoutError):
            raise RemoteError(f"not finished within {self.timeout_s:g} s (timeout_s)", "timeout") from None
        finally:
            future.cancel()  # if the caller was interrupted
            errand.running.discard(future)

    def retry(self, errand: Errand, url: str, attempt: Callable[[], T], part: str = "") -> T:
        """Calls ``attempt`` up to ``1 + retries`` times, until it succeeds or a retry is useless; logs each failure.

        Raises:
            RemoteError: the last failure, with the address and the number of attempts.
        """
        number = 1
        while True:
            try:
                return attempt()
            except RemoteError as error:
                if error.final or number > self.retries:
                    tries = "once" if number == 1 else f"{number} times"
                    message = f"{redacted_url(url)}{part}: {error} ({error.kind}, tried {tries})"
                    raise RemoteError(message, error.kind) from None
                pause = min(self.backoff_s * 2 ** (number - 1), _MAX_BACKOFF_S)
                # jitter, so that workers that failed together do not retry together
                pause *= 0.5 + random.Random(f"{url}{part} {os.getpid()} {number}").random()
                pause = max(pause, error.wait_s)
                log.warning(
                    "%s%s: %s (%s); try %d of %d follows in %.1f s",
                    redacted_url(url), part, error, error.kind, number + 1, self.retries + 1, pause,
                )  # fmt: skip
            self.count("retries")
            if errand.stopped.wait(pause):
                raise RemoteError(f"{redacted_url(url)}{part}: stopped", "stopped")
            number += 1

    def _transport(self, url: str) -> Transport:
        scheme = scheme_of(url)
        with self._lock:
            if scheme not in self._transports:
                options = self.storage_options.get(scheme, {})
                is_web = scheme in ("http", "https")
                self._transports[scheme] = (
                    Web(options, self.stall_s) if is_web else Bucket(scheme, options, self.stall_s)
                )
            return self._transports[scheme]
