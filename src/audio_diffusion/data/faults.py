"""The kinds of faults of clips, and the record of a clip that was skipped."""

from typing import NamedTuple

#: kinds of faults, and what each means
KINDS = {
    "format": "not a decodable audio format",
    "empty": "no samples",
    "corrupt": "decoding fails, or the checksum does not match",
    "truncated": "cut off, in the file or in the shard",
    "samples": "NaN, infinite or absurdly loud samples",
    "rate": "an impossible sample rate",
    "channels": "a number of channels that cannot be converted",
    "metadata": "json or fields missing or unreadable",
    "label": "a label that is not one of the classes",
    "duplicate": "a second member of the same name",
    "unsafe": "a link, a special member, or a name that leads out of the shard",
    "missing": "listed in the manifest, but not in the shard",
    "read": "the file system failed",
    "remote": "the server failed, after retries",
    "short": "shorter than a crop, and pad is off",
    "other_rate": "another sample rate, and convert is off",
    "other_channels": "another number of channels, and convert is off",
}
BY_RULE = ("short", "other_rate", "other_channels")  # left out because the configuration says so


class Skipped(NamedTuple):
    """A clip that could not be used: the shard's path, the clip's key, the kind of fault, and the reason in words."""

    shard: str
    key: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"clip {self.key!r} of {self.shard}: {self.reason}"
