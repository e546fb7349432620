"""Supports servers that ignore ranges: an object is fetched once as a whole into the cache, and read from there."""

from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.remote.address import RemoteError
from audio_diffusion.data.remote.cache import Cache
from audio_diffusion.data.remote.fetch import Errand, Fetcher, Range, bytes_of, checked, is_version


def whole_key(part: Range) -> str:
    """Returns the key of a whole object in the cache: its address, with its version if known."""
    return f"{part[0]}\n{part[3]}" if is_version(part[3]) else part[0]


def read_from_whole(fetcher: Fetcher, cache: Cache | None, errand: Errand, part: Range) -> bytes:
    """Returns a range of an object that its server only sends as a whole.

    Raises:
        RemoteError: if the object cannot be fetched or stored, or is not the expected one.
    """
    url, start, stop, sha256 = part
    what = redacted_url(url) + bytes_of(part)
    if cache is None:
        raise RemoteError(
            f"{what}: the server ignores ranges and sends whole objects; set a cache folder (data.store.cache_dir), "
            "so that each is fetched only once", "ranges",
        )  # fmt: skip
    data = cache.get(whole_key(part), start, stop)
    if data is not None:
        fetcher.count("cache_hits")
    else:
        data = _fetch(fetcher, cache, errand, part)
    try:
        return checked(data, stop - start, sha256)
    except RemoteError:
        cache.drop(whole_key(part))
    try:  # the cached object may be an earlier version
        return checked(_fetch(fetcher, cache, errand, part), stop - start, sha256)
    except RemoteError as error:
        raise RemoteError(f"{what}: {error}", error.kind) from None


def _fetch(fetcher: Fetcher, cache: Cache, errand: Errand, part: Range) -> bytes:
    return fetcher.retry(errand, part[0], lambda: _download(fetcher, cache, errand, part))


def _download(fetcher: Fetcher, cache: Cache, errand: Errand, part: Range) -> bytes:
    """Fetches an object into the cache, unless another process does; returns the bytes of the range."""
    url, start, stop, _ = part
    key = whole_key(part)
    try:
        with cache.lock(key, errand.stopped):
            if (data := cache.get(key, start, stop)) is not None:
                return data
            size, _ = fetcher.request(errand, url, lambda transport: transport.stat(url))
            if size is not None and size > cache.max_bytes:
                raise RemoteError(
                    f"the server ignores ranges, and {size} bytes do not fit: set data.store.cache_gb", "cache"
                )
            with cache.writer(key) as writer:
                fetcher.stream(errand, url, writer.write)
                if size is not None and writer.length != size:
                    raise RemoteError(f"expected {size} bytes, got {writer.length}", "short")
                writer.commit()
            data = cache.get(key, start, stop)
    except OSError as error:
        raise RemoteError(f"the server ignores ranges, and the cache does not work: {error}", "cache") from None
    if data is None:
        raise RemoteError("the server ignores ranges, and the fetched object is no longer in the cache", "cache")
    return data
