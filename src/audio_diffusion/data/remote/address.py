"""Checks remote addresses, and defines the error for those that cannot be read."""

import re
from functools import lru_cache

from audio_diffusion.checkpoints.redaction import redacted_url

SCHEMES = ("http", "https", "s3", "gs")
_BEGINNINGS = ", ".join(f"{scheme}://" for scheme in SCHEMES)

#: kinds of failure for which a retry is useless
FINAL = ("not_found", "forbidden", "refused", "ranges", "cache", "stopped")


class RemoteError(Exception):
    """Raised if a remote object cannot be read. The message contains the address without credentials.

    Args:
        message: description of the failure.
        kind: ``not_found``, ``forbidden``, ``refused`` (by the server, or an address that is not followed),
            ``server`` (5xx, 429), ``stalled`` (no byte for too long), ``timeout`` (bytes, but too slowly),
            ``connection``, ``short`` (fewer bytes than there should be), ``html`` (a page instead of data), ``hash``,
            ``ranges`` (the server sends whole objects only), ``cache`` (it does not fit into the cache), ``stopped``.
        wait_s: the pause that the server requested, in seconds.
    """

    def __init__(self, message: str, kind: str = "server", wait_s: float = 0.0):
        super().__init__(message)
        self.kind, self.wait_s = kind, wait_s

    @property
    def final(self) -> bool:
        """Whether a retry is useless."""
        return self.kind in FINAL


@lru_cache(maxsize=4096)  # called for every crop
def is_remote(path: str) -> bool:
    """Whether a path is an address; ``file://`` and plain paths are local.

    Raises:
        ValueError: for an address of another scheme than ``SCHEMES``, a ``pipe:`` or a chain of addresses (``a::b``).
    """
    scheme, found, rest = path.partition("://")
    if not found and not path.startswith("pipe:"):
        return False
    if found and scheme.lower() == "file":
        return False
    if not found or scheme.lower() not in SCHEMES or re.search(r"::[\w+.-]*://", rest):
        raise ValueError(
            f"shards: expected a local path or an address that begins with one of {_BEGINNINGS}, got "
            f"{redacted_url(path)!r}. "
            "Commands (pipe:) and chained addresses (a::b) are never run"
        )
    return True


def local_path(path: str) -> str:
    """Removes ``file://`` from a local path."""
    return path[len("file://") :] if path.lower().startswith("file://") else path


def scheme_of(url: str) -> str:
    """Returns the scheme of a remote address.

    Raises:
        ValueError: if it is not one of ``SCHEMES``.
    """
    if not is_remote(url):
        raise ValueError(f"url: expected an address that begins with one of {_BEGINNINGS}, got {redacted_url(url)!r}")
    return url.partition("://")[0].lower()
