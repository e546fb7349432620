"""Converts one source into clips: checks, converts, cuts, normalises and encodes it.

Runs in worker processes; the result does not depend on any state between calls.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audio_diffusion.checkpoints.files import blocks_of
from audio_diffusion.data.audio.reading import CONVERTED, AudioInfo, UnusableAudio, check
from audio_diffusion.data.audio.recording import Recording, encode, probe, to_int16
from audio_diffusion.data.remote import RemoteError, RemoteStore, version_seal
from audio_diffusion.packing import form as forms
from audio_diffusion.packing.form import FLOOR_DB, FORMATS, Form, Task, cut_of
from audio_diffusion.packing.sources import EXTENSIONS, Source

PEAK_DB = -1.0  # upper bound of the peak after normalisation
_BLOCK = 1 << 20  # bytes read at once
_MAX_MEMBER = 1 << 33  # bytes: the largest size that a tar header can store
_MAX_PIECE = 1 << 27  # samples over all channels that are converted in memory: 25 minutes of 44.1 kHz stereo


class Clip(NamedTuple):
    """A clip to write. If ``audio`` is None, the bytes of the source are copied; ``meta`` has their hash."""

    source: Source
    key: str
    ending: str
    audio: bytes | None
    num_bytes: int
    meta: dict[str, Any]


class Drop(NamedTuple):
    """A source, or a part of it, that is left out. ``kind`` is ``silent``, ``refused``, or ``missing`` for audio that
    the file should contain but does not."""

    name: str
    kind: Literal["silent", "refused", "missing"]
    start_s: float
    seconds: float
    reason: str


def look(form: Form, store: RemoteStore | None, source: Source) -> AudioInfo | str:
    """Reads the header of a source; returns its properties, or the reason why it is refused."""
    if source.problem:
        return source.problem
    if source.ending not in EXTENSIONS:
        return f"its name has none of the extensions {', '.join(EXTENSIONS)}"
    try:
        if source.ending in CONVERTED and form.format == "keep":
            return f"{source.ending} cannot be kept, because training does not read it; set format=flac to convert it"
        info = probe(file_of(source, store), form.format != "keep", 1.0 if form.format == "keep" else form.max_missing)
    except (UnusableAudio, OSError, RemoteError) as error:
        return _reason(error)
    cut = cut_of(info, form)
    if form.format != "keep" and cut.piece * cut.channels > _MAX_PIECE:
        return f"is {info.duration_s:.0f} s long, which is too long for one piece: set segment_s"
    return info


def prepare(form: Form, store: RemoteStore | None, task: Task) -> list[Clip | Drop]:
    """Returns the clips of a task and the parts left out, in order; a fault affects only the pieces that contain it."""
    if task.is_part and form.format == "keep":
        form = replace(form, format="flac")
    try:
        return _keep(task, form, store) if form.format == "keep" else _convert(task, form, store)
    except (UnusableAudio, OSError, RemoteError) as error:
        return [_refused(task, error)]


def _refused(task: Task, error: Exception) -> Drop:
    """Returns the record of a refused task; its reason names the range of the source, unless it is all of it."""
    reason = _reason(error)
    if task.cut.num_pieces > task.stop - task.first:
        reason = f"left out from {task.start_s:g} to {task.start_s + task.seconds:g} s: {reason}"
    return Drop(task.source.name, "refused", task.start_s, task.seconds, reason)


def _reason(error: Exception) -> str:
    """Returns the reason why a source is refused.

    Raises:
        ValueError: if the connection failed rather than the source, as no source may be left out for that reason.
    """
    if isinstance(error, RemoteError) and error.kind not in ("not_found", "forbidden", "refused"):
        raise ValueError(f"input: {error}. Repeat the command to continue from here") from error
    return str(error)


def file_of(source: Source, store: RemoteStore | None) -> Path | BinaryIO:
    """Returns the path of a local source, or an open file of a URL."""
    if isinstance(source.path, Path):
        return source.path
    assert store is not None
    stat = store.stat(source.path)
    return store.open(source.path, 0, stat.size, version_seal(stat.etag))


class _Level:
    """Accumulates root mean square and peak of samples, block by block."""

    def __init__(self) -> None:
        self._squares, self._count, self.peak = 0.0, 0, 0.0

    def add(self, block: NDArray[np.float32]) -> None:
        self._squares += float(np.square(block, dtype=np.float64).sum())
        self._count += block.size
        self.peak = max(self.peak, float(block.max()), -float(block.min()))

    @property
    def db(self) -> float:
        """Returns the RMS in dBFS: that of a full-scale square wave is 0, that of a sine -3."""
        return max(10 * math.log10(max(self._squares / self._count, 1e-20)), FLOOR_DB)


def _silence(source: Source, level: _Level, start_s: float, seconds: float, form: Form) -> Drop | None:
    if form.silence_db is None or level.db >= form.silence_db:
        return None
    return Drop(source.name, "silent", start_s, seconds, f"{level.db:.1f} dBFS")


def read_blocks(source: Source, store: RemoteStore | None) -> Iterator[bytes]:
    """Yields the bytes of a source, block by block."""
    file = file_of(source, store)
    if isinstance(file, Path):
        yield from blocks_of(file)
        return
    with file as opened:
        while block := opened.read(_BLOCK):
            yield block


def _missing(source: Source, info: AudioInfo) -> list[Clip | Drop]:
    """Returns the record of the missing audio of a source that is used nevertheless."""
    if not info.missing:
        return []
    reason = f"used, although audio is missing: {info.missing}"
    return [Drop(source.name, "missing", info.duration_s, info.missing_s, reason)]


def _keep(task: Task, form: Form, store: RemoteStore | None) -> list[Clip | Drop]:
    """Checks a whole file by decoding it, and keeps its bytes unchanged. A small file is read only once."""
    source, level, digest = task.source, _Level(), hashlib.sha256()
    blocks: list[bytes] = []
    size = 0
    for block in read_blocks(source, store):
        digest.update(block)
        size += len(block)
        if size <= forms.IN_MEMORY:
            blocks.append(block)
    if size >= _MAX_MEMBER:
        raise UnusableAudio(
            f"has {size} bytes, but a member of a tar has less than {_MAX_MEMBER}: cut it with segment_s"
        )
    audio = b"".join(blocks) if size <= forms.IN_MEMORY else None
    info = check(memoryview(audio) if audio is not None else file_of(source, store), level.add, form.max_missing)
    if drop := _silence(source, level, 0.0, info.duration_s, form):
        return [drop]
    known = {
        "frames": info.frames,
        "sample_rate": info.sample_rate,
        "channels": info.channels,
        "sha256": digest.hexdigest(),
        "level_db": round(level.db, 2),
    }
    return [Clip(source, source.key, source.ending, audio, size, _meta(source, known)), *_missing(source, info)]


#: the source of several tasks that this process has open: reopening an MP3 would scan all of it up to the position
_opened: list[tuple[Path | str, AudioInfo, Recording]] = []


def _recording(task: Task, store: RemoteStore | None) -> Recording:
    path, info = task.source.path, task.info
    if not _opened or _opened[0][:2] != (path, info) or task.first == 0:
        if _opened:
            _opened.pop()[2].close()
        _opened.append((path, info, Recording(file_of(task.source, store), info)))
    return _opened[0][2]


def _convert(task: Task, form: Form, store: RemoteStore | None) -> list[Clip | Drop]:
    recording, made = _recording(task, store), list[Clip | Drop]()
    first: tuple[int, UnusableAudio] | None = None  # number of consecutive unusable pieces, and the reason
    try:
        for number in range(task.first, task.stop):
            try:
                made.append(_piece(task, number, recording, form))
                first = None
            except UnusableAudio as error:
                if first is not None:
                    made.pop()  # one row for all of them
                first = first or (number, error)
                made.append(_refused(replace(task, first=first[0], stop=number + 1), first[1]))
        return made + (_missing(task.source, task.info) if task.is_last else [])
    finally:
        if task.is_last:
            _opened.pop()[2].close()


def _piece(task: Task, number: int, recording: Recording, form: Form) -> Clip | Drop:
    """Reads, normalises and encodes one piece of a source."""
    source, cut, level = task.source, task.cut, _Level()
    start_s = number * cut.piece / cut.sample_rate
    audio = recording.read(number * cut.piece, cut.piece, cut.sample_rate, cut.channels)
    level.add(audio)
    if drop := _silence(source, level, start_s, audio.shape[1] / cut.sample_rate, form):
        return drop
    is_piece = form.segment_s or task.is_part
    place = {"segment": number, "start_s": round(start_s, 6)} if is_piece else {}
    gain_db, loudness = _loudness(audio, cut.sample_rate, level.peak, form.lufs) if form.lufs is not None else (0.0, {})
    if gain_db:
        audio = audio * np.float32(10 ** (gain_db / 20))
    samples, clipped = to_int16(audio)
    data = encode(samples, cut.sample_rate, "FLAC" if form.format == "flac" else "WAV")
    known = {
        "frames": audio.shape[1],
        "sample_rate": cut.sample_rate,
        "channels": cut.channels,
        "sha256": hashlib.sha256(data).hexdigest(),
        "level_db": round(max(level.db + gain_db, FLOOR_DB), 2),
    }
    more = place | loudness | ({"clipped": clipped} if clipped else {})
    key = f"{source.key}_{number:06d}" if is_piece else source.key
    return Clip(source, key, FORMATS[form.format], data, len(data), _meta(source, known | more))


def _loudness(audio: NDArray[np.float32], sample_rate: int, peak: float, target: float) -> tuple[float, dict[str, Any]]:
    """Returns the gain in dB that brings a piece ``[C, T]`` to a loudness, and the entries of its json.

    Raises:
        UnusableAudio: for more than 5 channels, for which loudness is not defined.
    """
    from pyloudnorm import Meter

    if len(audio) > 5:
        raise UnusableAudio(f"has {len(audio)} channels; loudness is defined for at most 5: set channels", "channels")
    block_s = min(0.4, audio.shape[1] / sample_rate * (1 - 1e-9))
    with np.errstate(divide="ignore", invalid="ignore"):
        loudness = float(Meter(sample_rate, block_size=block_s).integrated_loudness(audio.T.astype(np.float64)))
    if not math.isfinite(loudness):
        return 0.0, {"lufs": None}
    wanted_db, most_db = target - loudness, PEAK_DB - 20 * math.log10(peak)
    gain_db, limited = min(wanted_db, most_db), wanted_db > most_db
    measured = {"lufs": round(loudness + gain_db, 2), "gain_db": round(gain_db, 2)}
    return gain_db, measured | ({"gain_limited": True} if limited else {})


def _meta(source: Source, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the json of a clip. An entry of the manifest whose name is used here is stored under ``given_`` and its
    name."""
    known = {"source": source.name, **known}
    fields = {key: value for key, value in source.fields.items() if key != "split"}
    return {(f"given_{key}" if key in known else key): value for key, value in fields.items()} | known
