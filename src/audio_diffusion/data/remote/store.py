"""Reads ranges of remote objects as bytes and files, with a cache, checks and read-ahead."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.remote.address import SCHEMES, RemoteError, scheme_of
from audio_diffusion.data.remote.cache import Cache
from audio_diffusion.data.remote.fetch import Errand, Fetcher, Range, checked, is_version, version_seal
from audio_diffusion.data.remote.file import RemoteFile
from audio_diffusion.data.remote.whole import read_from_whole, whole_key

T = TypeVar("T")

_MAX_AT_ONCE = 1 << 30  # maximum size in bytes of an object that is read into memory as a whole
_INHERITED: list[object] = []  # a forked process must not finalize its parent's connections


class ObjectStat(NamedTuple):
    """Size of an object in bytes, and a version string that changes with its content; "" if the server sends none."""

    size: int
    etag: str


class RemoteStore:
    """Reads objects on web servers and in buckets.

    It can be pickled and forked; threads and connections are created at the first use in each process. Credentials come
    from the standard places of each protocol's library (AWS_*, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS, an instance's
    role).

    Args:
        cache_dir: folder of the cache; None for no cache.
        cache_gb: maximum size of the cache, in 10^9 bytes.
        stall_s: seconds without data after which a request is aborted.
        timeout_s: seconds after which a request is aborted in any case.
        retries: number of attempts after the first one.
        backoff_s: pause before the second attempt, seconds; it doubles with each attempt, up to 30 s, with 50 % jitter.
        storage_options: arguments of each scheme's fsspec filesystem: ``{"s3": {"endpoint_url": ...}}``.
        block_bytes: number of bytes that ``open`` fetches at once.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        cache_dir: str | None,
        cache_gb: float = 50,
        stall_s: float = 30,
        timeout_s: float = 300,
        retries: int = 5,
        backoff_s: float = 0.5,
        storage_options: dict[str, dict[str, Any]] | None = None,
        block_bytes: int = 4 << 20,
    ):
        positive = {"cache_gb": cache_gb, "stall_s": stall_s, "timeout_s": timeout_s, "block_bytes": block_bytes}
        for name, value in positive.items():
            if value <= 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")
        for name, value in {"retries": retries, "backoff_s": backoff_s}.items():
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        for scheme in storage_options or {}:
            if scheme not in SCHEMES:
                raise ValueError(f"storage_options: expected options by scheme ({', '.join(SCHEMES)}), got {scheme!r}")
        self._arguments = (cache_dir, cache_gb, stall_s, timeout_s, retries, backoff_s, storage_options, block_bytes)
        self.cache_dir, self.block_bytes = cache_dir, block_bytes
        self._pid = -1
        self._fetcher: Fetcher

    def __reduce__(self) -> tuple:
        return type(self), self._arguments

    def _enter(self) -> None:
        """Initialises the state of this process, also after a fork."""
        if self._pid == os.getpid():
            return
        if self._pid != -1:
            _INHERITED.append(self._fetcher)
        cache_dir, cache_gb, stall_s, timeout_s, retries, backoff_s, options, _ = self._arguments
        self._cache = Cache(cache_dir, int(cache_gb * 1e9)) if cache_dir else None
        self._fetcher = Fetcher(stall_s, timeout_s, retries, backoff_s, options or {})
        self._staged: dict[Range, tuple[Future, int]] = {}  # with the number of items that wait for it
        self._direct = Errand()
        self._pid = os.getpid()

    @property
    def stats(self) -> dict[str, int]:
        """Counters of this process: requests, bytes (fetched), retries, cache_hits, cache_damaged, cache_evicted."""
        self._enter()
        counts = {name: self._fetcher.counts[name] for name in ("requests", "bytes", "retries", "cache_hits")}
        damaged, evicted = (self._cache.damaged, self._cache.evicted) if self._cache else (0, 0)
        return {**counts, "cache_damaged": damaged, "cache_evicted": evicted}

    def list(self, pattern: str, recursive: bool = False) -> list[str]:
        """Returns the sorted addresses of the objects in a folder, or of those that match a glob; on the web, of those
        that the page links to.

        Args:
            pattern: folder or glob.
            recursive: whether to include the folders below.

        Raises:
            RemoteError: if the folder does not exist or cannot be listed.
        """
        self._enter()
        return sorted(self._fetcher.list(self._direct, pattern, recursive))

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the sizes in bytes of the objects in a folder by address, if the listing has them: that of a bucket
        has all, a web page none.

        Raises:
            RemoteError: if the folder does not exist or cannot be listed.
        """
        self._enter()
        return {url: size for url, size in self._fetcher.list(self._direct, folder).items() if size is not None}

    def size(self, url: str) -> int:
        """Returns the size of an object in bytes.

        Raises:
            RemoteError: if it does not exist, or the server does not send its size.
        """
        return self.stat(url).size

    def stat(self, url: str) -> "ObjectStat":
        """Returns the size of an object in bytes, and a version string that changes with its content ("" if the server
        sends none).

        Raises:
            RemoteError: if it does not exist, or the server does not send its size.
        """
        self._enter()
        size, etag = self._fetcher.stat(self._direct, url)
        if size is None:
            raise RemoteError(f"{redacted_url(url)}: the server does not send its size", "refused")
        return ObjectStat(size, etag)

    def read(self, url: str, start: int = 0, stop: int | None = None, sha256: str = "", cache: bool = True) -> bytes:
        """Returns the bytes [start, stop) of an object, or all of it; immediately if ``read_ahead`` has fetched them.

        Args:
            url: address.
            start: first byte.
            stop: byte after the last one; None for the end of the object.
            sha256: expected hash of these bytes, hexadecimal, or a ``version_seal``; None checks only their number.
            cache: whether to use the cache. False for objects without a known hash that may change under their address,
                such as a manifest.

        Raises:
            RemoteError: if they cannot be read, or differ from the expectation.
        """
        self._enter()
        if stop is None:
            return self._load_to_end(url, start, sha256, cache)
        staged = self._staged.get((url, start, stop, sha256))
        return staged[0].result() if staged else self._load(self._direct, (url, start, stop, sha256), cache)

    def open(self, url: str, start: int, stop: int, sha256: str = "") -> BinaryIO:
        """Returns a file over bytes [start, stop) that fetches blocks when they are read.

        Args:
            url: address.
            start: first byte.
            stop: byte after the last one.
            sha256: expected hash of these bytes. Checked if they fit into one block, which is read at once. Larger
                ranges are read in part, which a hash cannot check; cached blocks with another hash are not used.
        """
        self._enter()
        if stop - start <= self.block_bytes:
            return io.BytesIO(self.read(url, start, stop, sha256))

        def read_block(first: int, last: int) -> bytes:
            self._enter()
            part = (url, start + first, start + last, sha256 if is_version(sha256) else "")
            return self._load(self._direct, part, version=sha256)

        return cast(BinaryIO, RemoteFile(stop - start, self.block_bytes, read_block))

    def read_ahead(
        self,
        items: Iterable[tuple[T, Sequence[Range]]],
        num_ahead: int = 32,
        num_threads: int = 16,
        max_bytes: int = 256 << 20,
    ) -> Iterator[T]:
        """Yields items in order, each when its ranges have been fetched, while the next ones are fetched in the
        background.

        Until the next item is requested, ``read`` returns the item's ranges from memory, or raises the error of
        fetching them.

        Args:
            items: each with the ranges (address, start, stop, sha256) that will be read for it.
            num_ahead: number of items to fetch in advance.
            num_threads: number of simultaneous requests.
            max_bytes: maximum size of the ranges in memory, except for those of a single item.
        """
        self._enter()
        errand, pool = Errand(), ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")
        source, queue, num_bytes = iter(items), deque[tuple[T, Sequence[Range]]](), 0
        try:
            while True:
                while len(queue) <= num_ahead and (num_bytes < max_bytes or not queue):
                    following = next(source, None)
                    if following is None:
                        break
                    queue.append(following)
                    num_bytes += sum(self._stage(errand, pool, part) for part in following[1])
                if not queue:
                    return
                item, ranges = queue[0]
                wait([self._staged[part][0] for part in ranges])
                yield item
                queue.popleft()
                num_bytes -= sum(self._unstage(part) for part in ranges)
        finally:
            errand.stop()
            pool.shutdown(cancel_futures=True)
            for _, ranges in queue:
                for part in ranges:
                    self._unstage(part)

    def _stage(self, errand: Errand, pool: ThreadPoolExecutor, part: Range) -> int:
        future, uses = self._staged.get(part) or (pool.submit(self._load, errand, part), 0)
        self._staged[part] = (future, uses + 1)
        return part[2] - part[1]

    def _unstage(self, part: Range) -> int:
        future, uses = self._staged.pop(part)
        if uses > 1:
            self._staged[part] = (future, uses - 1)
        return part[2] - part[1]

    def _load_to_end(self, url: str, start: int, sha256: str, cache: bool) -> bytes:
        size, etag = self._fetcher.stat(self._direct, url)
        if size is None:
            return self._load_unsized(url, start, sha256)
        if size - start > _MAX_AT_ONCE:
            raise RemoteError(f"{redacted_url(url)}: {size - start} bytes are too many to be read at once", "refused")
        return self._load(self._direct, (url, start, size, sha256 or version_seal(etag)), cache)

    def _load_unsized(self, url: str, start: int, sha256: str) -> bytes:
        """Reads a whole object of unknown length; only a hash can show that it is complete."""

        def attempt() -> bytes:
            data = bytearray()

            def sink(chunk: bytes) -> None:
                data.extend(chunk)
                if len(data) > _MAX_AT_ONCE:
                    raise RemoteError("it has more bytes than can be read at once, and its size is unknown", "refused")

            self._fetcher.stream(self._direct, url, sink)
            return checked(bytes(data[start:]), max(len(data) - start, 0), sha256)

        return self._fetcher.retry(self._direct, url, attempt)

    def _load(self, errand: Errand, part: Range, cache: bool = True, version: str = "") -> bytes:
        """Reads a range from the cache or its server. ``version`` separates the cached blocks of objects with different
        hashes."""
        url, start, stop, sha256 = part
        scheme_of(url)
        if not 0 <= start <= stop:
            raise ValueError(f"range: expected 0 <= start <= stop, got [{start}, {stop})")
        if start == stop:
            return b""
        kept = self._cache if cache else None
        key = f"{url}\n{start}\n{stop}\n{sha256 or version}"
        if kept is not None and (data := kept.get(key)) is not None:
            self._fetcher.count("cache_hits")
            return data
        if kept is not None and kept.path(whole_key(part)).exists():
            return read_from_whole(self._fetcher, self._cache, errand, part)
        try:
            data = self._fetcher.range(errand, part)
        except RemoteError as error:
            if error.kind != "ranges":
                raise
            return read_from_whole(self._fetcher, self._cache, errand, part)
        if kept is not None:
            kept.put(key, data)
        return data
