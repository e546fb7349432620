"""How files are converted and cut into clips, and the units of work that result."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from audio_diffusion.data.audio.reading import MAX_MISSING, SAMPLE_RATES, AudioInfo
from audio_diffusion.data.audio.recording import resampled_length
from audio_diffusion.packing.sources import Source

FORMATS = {"keep": "", "flac": "flac", "pcm16": "wav"}  # with the extension of the file's name
FLOOR_DB = -140.0  # recorded level of digital silence
IN_MEMORY = 16_000_000  # maximum size in bytes of a kept file, or of a task's clips, in one result


@dataclass(frozen=True)
class Form:
    """Options of the conversion of files into clips.

    Args:
        format: ``keep`` the bytes, or encode as ``flac`` or ``pcm16`` (WAV), both 16 bits.
        sample_rate: sample rate of the clips, Hz; None for that of each file.
        channels: number of channels of the clips; None for that of each file.
        segment_s: length of the pieces that files are cut into, seconds; None to keep files whole. The last piece
            of a file may be shorter; less than half a piece is dropped. Files no longer than a piece are not cut.
        silence_db: pieces with an RMS over all samples and channels below this, in dBFS, are dropped; None drops none.
        max_missing: fraction of a file, 0 to 1, that may be missing (truncated, or damaged pages). The rest is used,
            and the missing parts are reported; files that lack more are refused.
        lufs: integrated loudness (ITU-R BS.1770-4) that pieces are normalised to. Pieces under 0.4 s are one block,
            and pieces entirely below -70 LUFS are not changed. The gain is limited to peaks of -1 dBFS.

    Raises:
        ValueError: for values out of range, or for ``keep`` together with an option that changes the audio.
    """

    format: str = "keep"
    sample_rate: int | None = None
    channels: int | None = None
    segment_s: float | None = None
    silence_db: float | None = None
    lufs: float | None = None
    max_missing: float = MAX_MISSING

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format: expected {', '.join(FORMATS)}, got {self.format!r}")
        ranges = {
            "sample_rate": SAMPLE_RATES,
            "channels": (1, 64),
            "segment_s": (1e-3, math.inf),
            "silence_db": (FLOOR_DB, 0),
            "lufs": (-70, 0),
            "max_missing": (0, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value:g}")
        if self.format == "keep":
            for name in ("sample_rate", "channels", "segment_s", "lufs"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: format=keep leaves the audio as it is; choose format=flac or pcm16")


class Cut(NamedTuple):
    """How a source is cut: sample rate and channels of its clips, samples per piece, number of pieces, and number of
    samples dropped at the end."""

    sample_rate: int
    channels: int
    piece: int
    num_pieces: int
    left_out: int


class Part(NamedTuple):
    """The pieces ``[first, stop)`` of a source that is cut."""

    cut: Cut
    first: int
    stop: int


@dataclass(frozen=True)
class Task:
    """A unit of work: the pieces ``[first, stop)`` of a source. ``is_part``: another part of the source is in another
    split, so the source is cut regardless of the form."""

    source: Source
    info: AudioInfo
    cut: Cut
    first: int
    stop: int
    is_part: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the task contains the end of the source."""
        return self.stop == self.cut.num_pieces

    @property
    def start_s(self) -> float:
        """Start of the task in its source, in seconds."""
        return self.first * self.cut.piece / self.cut.sample_rate

    @property
    def seconds(self) -> float:
        """Duration of the task, in seconds of its source."""
        stop_s = self.info.duration_s if self.is_last else self.stop * self.cut.piece / self.cut.sample_rate
        return stop_s - self.start_s


def cut_of(info: AudioInfo, form: Form) -> Cut:
    """Computes how a file is cut; see ``Form`` for the rule."""
    sample_rate, channels = form.sample_rate or info.sample_rate, form.channels or info.channels
    total = resampled_length(info, sample_rate)
    piece = max(round(form.segment_s * sample_rate), 1) if form.segment_s else total
    if total <= piece:
        return Cut(sample_rate, channels, total, 1, 0)
    whole, rest = divmod(total, piece)
    keeps_rest = 2 * rest >= piece
    return Cut(sample_rate, channels, piece, whole + keeps_rest, 0 if keeps_rest else rest)


def tasks(source: Source, info: AudioInfo, form: Form, part: Part | None = None) -> Iterator[Task]:
    """Splits the work on a source, or on a part of it, into tasks that fit into memory."""
    whole = cut_of(info, form)
    cut, start, stop = part or Part(whole, 0, whole.num_pieces)
    step = max(IN_MEMORY // (2 * cut.piece * cut.channels), 1)
    for first in range(start, stop, step):
        yield Task(source, info, cut, first, min(first + step, stop), part is not None)
