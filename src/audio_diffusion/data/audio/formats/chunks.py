"""WAV, RF64, AIFF, W64, CAF and AU files: checks and corrects the sizes in their headers."""

from struct import pack, unpack, unpack_from
from typing import NamedTuple

from audio_diffusion.data.audio.formats.containers import Data, Layout, Loss, Part

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_UNKNOWN_64 = (0, 0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
_CHUNKS = 10_000  # limit on the number of chunks that are read


def is_placeholder(size: int) -> bool:
    """Whether a 32-bit size is a placeholder of a program that did not know it, such as ffmpeg or sox on a pipe."""
    return size == 0 or size >= 0x7FFF0000


class _Wav(NamedTuple):
    """Header of a WAV: offset of the audio, its size in bytes by the header, and the offsets of the size fields."""

    begin: int
    declared: int
    place: int
    place_64: int  # 0: there is none


def _wav(data: Data, at: int) -> _Wav | None:
    """Reads the header of a WAV that begins at ``at``; None if there is no data chunk."""
    at += 12
    place_64, long_size = 0, 0
    for _ in range(_CHUNKS):
        head = data.read(at, 8)
        if len(head) < 8:
            return None
        name, size = unpack("<4sI", head)
        if name == b"ds64":
            place_64, long_size = at + 16, unpack("<Q", data.read(at + 16, 8).ljust(8, b"\0"))[0]
        if name == b"data":
            return _Wav(at + 8, long_size if place_64 and size == 0xFFFFFFFF else size, at + 4, place_64)
        at += 8 + size + size % 2
    return None


def _ends_with_chunks(data: Data, at: int) -> bool:
    """Whether the file contains only whole chunks from ``at`` to its end."""
    for _ in range(_CHUNKS):
        if at >= data.size:
            return at == data.size
        head = data.read(at, 8)
        if len(head) < 8 or not all(32 <= byte < 127 for byte in head[:4]):
            return False
        size = unpack_from("<I", head, 4)[0]
        at += 8 + size + size % 2
    return False


def _lost(declared: int, there: int, sample_bytes: float) -> list[Loss]:
    """Returns the loss if a file has fewer bytes of audio than its header declares."""
    if declared <= there or sample_bytes <= 0:
        return []
    reason = f"ends after {there} bytes of audio, though its header says {declared}"
    return [Loss(there / sample_bytes, (declared - there) / sample_bytes, reason)]


def _riff(data: Data, frames: int, sample_rate: int) -> Layout:
    """Returns the layout of WAV and RF64 files, including those whose size was never written, and concatenated ones."""
    parts: list[Part] = []
    losses: list[Loss] = []
    start = 0
    while start >= 0 and (wav := _wav(data, start)) is not None:
        there = data.size - wav.begin
        if wav.declared in _UNKNOWN_64 and there and not _ends_with_chunks(data, wav.begin):
            parts.append(Part(_with_size(start, wav, there)))
            return Layout(parts, losses)
        if wav.declared > there:
            if not is_placeholder(wav.declared):
                losses += _lost(wav.declared, there, there * sample_rate / frames if frames else 0.0)
            break
        end = wav.begin + wav.declared + wav.declared % 2
        parts.append(Part([(start, min(end, data.size))]))
        start = _following(data, end)
    return Layout(parts if len(parts) > 1 else [], losses)


def _with_size(start: int, wav: _Wav, there: int) -> list[tuple[int, int] | bytes]:
    """Returns the pieces of a WAV that reaches to the end of the file, with the actual size in its header."""
    stop = wav.begin + there
    if wav.place_64:
        return [(start, wav.place_64), pack("<Q", there), (wav.place_64 + 8, stop)]
    return [(start, wav.place), pack("<I", min(there, 0xFFFFFFFE)), (wav.begin, stop)]


def _following(data: Data, at: int) -> int:
    """Returns the offset of the next WAV after ``at``, skipping other chunks; -1 if there is none."""
    for _ in range(_CHUNKS):
        head = data.read(at, 12)
        if len(head) < 12:
            return -1
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return at
        size = unpack_from("<I", head, 4)[0]
        at += 8 + size + size % 2
    return -1


def _data_chunk(data: Data) -> tuple[int, int] | None:
    """Returns (offset, size by the header) of the audio's bytes in AIFF, W64, CAF and AU; None if unknown."""
    head = data.read(0, 16)
    if head[:4] == b".snd":
        begin, size = unpack_from(">II", head, 4)
        return begin, size
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        start, order, name, extra = 12, ">4sI", b"SSND", 0
    elif head[:4] == b"caff":
        start, order, name, extra = 8, ">4sQ", b"data", 0
    elif head[:4] == b"riff":
        start, order, name, extra = 40, "<16sQ", _W64_DATA, 24
    else:
        return None
    length = 24 if extra else 12 if order == ">4sQ" else 8
    for _ in range(_CHUNKS):
        chunk = data.read(start, length)
        if len(chunk) < length:
            return None
        found, size = unpack(order, chunk)
        if found == name:
            return start + length, size - extra
        start += size + -size % 8 if extra else length + size + (size % 2 if length == 8 else 0)
    return None


def _bytes_per_second(data: Data, head: bytes) -> float:
    """Returns the bytes per second of a CAF file from its description chunk; 0 if they are not given."""
    text = data.read(20, 28)
    if head[:4] != b"caff" or len(text) < 28:
        return 0.0
    sample_rate, _, _, packet_bytes, packet_frames = unpack(">dIIII", text[:24])
    return sample_rate * packet_bytes / packet_frames if packet_frames else 0.0


def layout(data: Data, frames: int, sample_rate: int) -> Layout:
    """Returns the layout of a WAV, RF64, AIFF, W64, CAF or AU file.

    Args:
        data: the file.
        frames: number of samples per channel that libsndfile reads from it.
        sample_rate: Hz.
    """
    head = data.read(0, 12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _riff(data, frames, sample_rate)
    found = _data_chunk(data)
    if found is None:
        return Layout()
    begin, size = found
    there, losses = data.size - begin, []
    if head[:4] == b"riff" and (size + 24 in _UNKNOWN_64 or size > 1 << 62):  # libsndfile refuses such files in memory
        sizes = pack("<Q", data.size), pack("<Q", there + 24)
        return Layout([Part([(0, 16), sizes[0], (24, begin - 8), sizes[1], (begin, data.size)])])
    if size < 1 << 62 and size not in (0, 0xFFFFFFFF):
        losses = _lost(size, there, there * sample_rate / frames if frames > 0 else _bytes_per_second(data, head))
    if head[:4] == b"caff" and size > there:  # libsndfile refuses such files
        pieces: list[tuple[int, int] | bytes] = [(0, begin - 8), pack(">Q", there), (begin, data.size)]
        return Layout([Part(pieces)], losses)
    return Layout([], losses)
