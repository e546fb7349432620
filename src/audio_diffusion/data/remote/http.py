"""Makes single requests to web servers and buckets; failures are raised as ``RemoteError``."""

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import fsspec

from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.remote.address import RemoteError

if TYPE_CHECKING:
    import aiohttp  # imported where it is used: it is slow to import, and local data do not need it

_MAX_WAIT_S = 60.0  # upper limit of the pause that a server may request
_CUT_OFF = {"ClientPayloadError", "IncompleteReadError", "IncompleteRead", "ResponseStreamingError"}
_NO_LOGIN = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"}


class Stat(NamedTuple):
    """Size of an object in bytes (None if the server does not send it), and its ETag or time of change ("" if none)."""

    size: int | None
    etag: str


class Transport(Protocol):
    """The methods that the store needs for a protocol. All of them run in fsspec's event loop."""

    async def stat(self, url: str) -> "Stat":
        """Returns size and version of an object without fetching it."""

    async def get(self, url: str, start: int, stop: int) -> bytes:
        """Returns the bytes [start, stop) that were received, possibly fewer."""

    async def stream(self, url: str, sink: Callable[[bytes], object]) -> None:
        """Passes the whole object to ``sink``, piece by piece."""

    async def list(self, pattern: str, recursive: bool = False) -> dict[str, int | None]:
        """Returns the objects in a folder (with ``recursive`` also below it), or those that match a glob, with their
        sizes if the listing contains them."""


def looks_html(data: bytes) -> bool:
    """Whether data begin like an HTML page."""
    return data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


class Web:
    """Transport for http and https. It uses fsspec's session, but reads responses itself: fsspec does not detect that a
    server ignored the range, and would read the whole object into memory."""

    def __init__(self, options: dict[str, Any], stall_s: float):
        import aiohttp

        redirects = aiohttp.TraceConfig()
        redirects.on_request_redirect.append(_check_redirect)
        client = {
            **options.get("client_kwargs", {}),
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s),
            "trace_configs": [redirects],
        }
        self._fs = fsspec.filesystem("http", skip_instance_cache=True, **{**options, "client_kwargs": client})

    @asynccontextmanager
    async def _response(
        self, url: str, start: int = 0, stop: int | None = None
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        session = await self._fs.set_session()
        # with compression, offsets and lengths would not refer to the object
        headers = {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        async with session.get(self._fs.encode_url(url), **{**self._fs.kwargs, "headers": headers}) as response:
            yield response

    async def stat(self, url: str) -> Stat:
        # GET instead of HEAD, because a signed address allows only one method
        async with self._response(url, 0, 1) as response:
            etag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status in (206, 416) and total.isdigit():
                return Stat(int(total), etag)
            _check_status(response)
            _check_page(response, await response.content.read(512))
            if response.status == 200 and response.content_length is not None:
                return Stat(response.content_length, etag)
        session = await self._fs.set_session()
        async with session.head(self._fs.encode_url(url), **self._fs.kwargs) as response:
            return Stat(response.content_length if response.status == 200 else None, etag)

    async def get(self, url: str, start: int, stop: int) -> bytes:
        async with self._response(url, start, stop) as response:
            _check_status(response)
            first = await response.content.read(512)
            _check_page(response, first)
            data = bytearray(first)
            # a response with exactly the whole object serves as well as a range
            ignored = response.status == 200 and (start > 0 or response.content_length not in (None, stop))
            if not ignored:
                _check_start(response, start)
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) > stop - start:
                        break
            if ignored or (response.status == 200 and len(data) > stop):
                raise RemoteError("the server ignores ranges and sends the whole object", "ranges")
            return bytes(data)

    async def stream(self, url: str, sink: Callable[[bytes], object]) -> None:
        async with self._response(url) as response:
            _check_status(response)
            first = await response.content.read(512)
            _check_page(response, first)
            sink(first)
            async for chunk in response.content.iter_chunked(1 << 20):
                sink(chunk)

    async def list(self, pattern: str, recursive: bool = False) -> dict[str, int | None]:
        if re.search(r"[*\[]", pattern):
            return dict.fromkeys(await self._fs._glob(pattern))
        links = await self._fs._ls(pattern, detail=False)
        pages = [url for url in links if url.endswith("/") and url.startswith(pattern.rstrip("/") + "/")]
        found: dict[str, int | None] = {url: None for url in links if not url.endswith("/")}
        for page in pages if recursive else []:
            if page.rstrip("/") != pattern.rstrip("/"):
                found |= await self.list(page, recursive)
        return found


class Bucket:
    """Transport for s3 and gs. The libraries' own retries are disabled, since the store retries and logs failures."""

    def __init__(self, scheme: str, options: dict[str, Any], stall_s: float):
        self._scheme, self._connecting = scheme, asyncio.Lock()
        try:
            self._fs = _s3(options, stall_s) if scheme == "s3" else _gs(options, stall_s)
        except ImportError as error:
            raise ValueError(
                f"shards: {scheme}:// needs a package that is not installed ({error}); "
                f"run: pip install 'audio_diffusion[{scheme}]'"
            ) from error

    async def _connected(self) -> Any:
        if self._scheme == "s3":
            async with self._connecting:  # simultaneous first requests would each create a connection pool
                await self._fs.set_session()
        return self._fs

    async def stat(self, url: str) -> Stat:
        info = await (await self._connected())._info(url)
        if info["type"] != "file":
            raise RemoteError("expected an object, found a folder", "not_found")
        known = next((info[name] for name in ("ETag", "etag", "LastModified", "updated") if info.get(name)), "")
        return Stat(info["size"], str(known))

    async def get(self, url: str, start: int, stop: int) -> bytes:
        return await (await self._connected())._cat_file(url, start=start, end=stop)

    async def stream(self, url: str, sink: Callable[[bytes], object]) -> None:
        sink(await (await self._connected())._cat_file(url))

    async def list(self, pattern: str, recursive: bool = False) -> dict[str, int | None]:
        fs = await self._connected()
        if recursive:
            entries = list((await fs._find(pattern, detail=True)).values())
        elif re.search(r"[*?\[]", pattern):
            entries = list((await fs._glob(pattern, detail=True)).values())
        else:
            entries = await fs._ls(pattern, detail=True)
        files = [entry for entry in entries if entry["type"] == "file" and not entry["name"].endswith("/")]
        return {f"{self._scheme}://{entry['name']}": entry["size"] for entry in files}


def _s3(options: dict[str, Any], stall_s: float) -> Any:
    config = {
        "connect_timeout": stall_s,
        "read_timeout": stall_s,
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 64,
        **options.get("config_kwargs", {}),
    }
    fs = fsspec.filesystem(
        "s3", skip_instance_cache=True, use_listings_cache=False, **{**options, "config_kwargs": config}
    )
    fs.retries = 1
    return fs


def _gs(options: dict[str, Any], stall_s: float) -> Any:
    # the class itself, since the protocol's name gives a subclass that uses gRPC first, which does not survive a fork
    import aiohttp
    from gcsfs.core import GCSFileSystem

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)
    fs = GCSFileSystem(skip_instance_cache=True, use_listings_cache=False, **{"requests_timeout": timeout, **options})
    fs._request = partial(type(fs)._request.__wrapped__, fs)  # its number of retries cannot be set
    return fs


async def _check_redirect(session: object, context: object, params: "aiohttp.TraceRequestRedirectParams") -> None:
    from yarl import URL

    location = params.response.headers.get("Location", "")
    target = params.url.join(URL(location))
    if target.scheme not in ("https", params.url.scheme):
        params.response.close()
        raise RemoteError(f"redirected from {params.url.scheme} to {target.scheme}, which is not followed", "refused")


def _check_status(response: "aiohttp.ClientResponse") -> None:
    status = response.status
    if status in (200, 206):
        return
    text = f"HTTP {status} {response.reason or ''}".rstrip()
    if status in (401, 403):
        raise RemoteError(f"{text}; are the credentials right?", "forbidden")
    if status in (404, 410):
        raise RemoteError(text, "not_found")
    if status == 416:
        raise RemoteError(f"{text}: the object is shorter than its index says", "short")
    if status in (408, 429) or status >= 500:
        delay = response.headers.get("Retry-After", "")
        raise RemoteError(text, "server", min(float(delay), _MAX_WAIT_S) if delay.isdigit() else 0.0)
    raise RemoteError(text, "refused")


def _check_page(response: "aiohttp.ClientResponse", first: bytes) -> None:
    is_page = response.content_type in ("text/html", "application/xhtml+xml") and first.lstrip().startswith(b"<")
    if response.status == 200 and (is_page or looks_html(first)):
        raise RemoteError("the server sent an HTML page instead of data: a login or error page?", "html")


def _check_start(response: "aiohttp.ClientResponse", start: int) -> None:
    if response.status == 206:
        came = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if came and int(came[1]) != start:
            raise RemoteError(f"requested bytes from {start}, the server sent those from {came[1]}", "server")


def explain(error: Exception, url: str, stall_s: float) -> RemoteError:
    """Converts a library's exception to a ``RemoteError``."""
    import aiohttp

    if isinstance(error, RemoteError):
        return error
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    names = {type(link).__name__ for link in chain}
    text = f"{type(error).__name__}: {error}".replace(url, redacted_url(url)).rstrip(": ")
    status = getattr(error, "status", getattr(error, "code", None))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return RemoteError(f"the cache cannot keep it: {error.strerror}", "cache")
    if isinstance(error, FileNotFoundError) or status == 404:
        return RemoteError(f"not found ({text})", "not_found")
    if isinstance(error, PermissionError) or status in (401, 403) or names & _NO_LOGIN or "Forbidden" in text:
        return RemoteError(f"{text}; are the credentials right?", "forbidden")
    if any("Timeout" in name for name in names):
        return RemoteError(f"no data received for {stall_s:g} s", "stalled")
    if names & _CUT_OFF or "range is not satisfiable" in text.lower():
        return RemoteError(f"the response was cut off ({text})", "short")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.InvalidURL | aiohttp.TooManyRedirects | ValueError):
        return RemoteError(text, "refused")
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError) or any("Connection" in n for n in names):
        return RemoteError(f"the connection failed ({text})", "connection")
    if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
        return RemoteError(text, "refused")
    return RemoteError(text, "server")
