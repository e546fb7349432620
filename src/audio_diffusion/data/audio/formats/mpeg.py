"""MP3 files: counts frames for an exact length, and detects concatenated files."""

from struct import pack, unpack_from
from typing import NamedTuple

from audio_diffusion.data.audio.formats.containers import Data, Layout, Loss, Part, skip_tags, trim_tags

_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # bit rates of MPEG-1
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # bit rates of MPEG-2 and 2.5
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by the version bits
_SAME = 0xFFFE0C00  # bits of a header that do not change within a file: sync, version, layer, rate
_MIN_RUN = 4  # consecutive frames that are accepted as a stream in a file that also has other data
_CHECKED = 40  # frames that are checked for a variable bit rate


class Frame(NamedTuple):
    """A frame's header: size in bytes, number of samples, sample rate in Hz, and offset at which a Xing header would
    be."""

    header: int
    size: int
    samples: int
    sample_rate: int
    xing: int


def frame(header: int) -> Frame | None:
    """Parses the four bytes of a layer III frame header; None if they are not one, or if the bit rate is "free"."""
    version, kbps, rate = header >> 19 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or header >> 17 & 3 != 1 or not 0 < kbps < 15 or rate == 3:
        return None
    sample_rate = _RATES[version][rate]
    is_first, is_mono = version == 3, header >> 6 & 3 == 3
    size = (144_000 if is_first else 72_000) * (_KBPS_1 if is_first else _KBPS_2)[kbps] // sample_rate
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return Frame(header, size + (header >> 9 & 1), 1152 if is_first else 576, sample_rate, 4 + side)


_known: dict[int, Frame | None] = {}


def _frame(data: Data, at: int) -> Frame | None:
    head = data.read(at, 4)
    if len(head) < 4 or head[0] != 0xFF:
        return None
    header = int.from_bytes(head, "big") & 0xFFFFFFC0  # the lowest six bits are not used here
    if header not in _known:
        _known[header] = frame(header)
    return _known[header]


class _Stream:
    """Consecutive frames that decode as one file: ``[start, stop)``, their number, and that in the Xing header."""

    def __init__(self, start: int, first: Frame):
        self.start = self.stop = start
        self.first, self.count, self.promised, self.xing, self.is_info = first, 0, 0, -1, False
        self.size = 0

    def note_header(self, data: Data) -> None:
        """Reads the first frame's information about the whole file, if it is a Xing, Info or VBRI header."""
        body = data.read(self.start, min(self.first.size, 256))
        at = self.first.xing
        if body[at : at + 4] in (b"Xing", b"Info") and len(body) >= at + 16:
            self.is_info, self.xing = True, self.start + at
            if body[at + 7] & 1:
                self.promised = unpack_from(">I", body, at + 8)[0]
        elif body[36:40] == b"VBRI":
            self.is_info = True

    @property
    def frames(self) -> int:
        """The number of frames of audio, without the frame that contains the Xing header."""
        return self.count - self.is_info


def _streams(data: Data) -> list[_Stream]:
    """Returns the streams of a file in order."""
    at, stop, streams = skip_tags(data), trim_tags(data, data.size), []
    current: _Stream | None = None
    while at < stop:
        found = _frame(data, at)
        if found is None or at + found.size > stop:
            at, current = (_next(data, at, stop) if found is None else stop), None if found is None else current
            continue
        if current is not None and (found.header ^ current.first.header) & _SAME:
            current = None
        if current is None or (current.count and data.read(at + found.xing, 4) in (b"Xing", b"Info")):
            current = _Stream(at, found)
            current.note_header(data)
            streams.append(current)
        current.count += 1
        at = current.stop = at + found.size
    return streams


def _next(data: Data, at: int, stop: int) -> int:
    """Returns the offset of the next frame after tags or other data."""
    if (after := skip_tags(data, at)) > at:
        return after
    if data.read(at, 3) == b"TAG":
        return at + 128
    while 0 <= (at := data.find(b"\xff", at + 1, stop)) < stop:
        following = at
        for _ in range(_MIN_RUN):
            found = _frame(data, following)
            if found is None:
                break
            following += found.size
            if following >= stop:
                break
        else:
            return at
        if found is not None and following == stop:
            return at
    return stop


def _info_frame(stream: _Stream) -> bytes:
    """A frame that contains only the number of frames that follow."""
    header = stream.first.header & ~0x10200 | 0x10000  # not padded, without a checksum
    for kbps in range(1, 15):
        made = frame(header & ~0xF000 | kbps << 12)
        if made is not None and made.size >= made.xing + 16:
            break
    assert made is not None
    size = stream.stop - stream.start + made.size
    text = pack(">I", made.header) + bytes(made.xing - 4) + b"Info" + pack(">III", 3, stream.frames, size)
    return text + bytes(made.size - len(text))


def _pieces(stream: _Stream) -> list[tuple[int, int] | bytes]:
    """Returns the pieces that libsndfile reads: a header with the actual number of frames, and the frames."""
    if stream.promised >= stream.frames:
        return [(stream.start, stream.stop)]
    if stream.promised:
        return [(stream.start, stream.xing + 8), pack(">I", stream.frames), (stream.xing + 12, stream.stop)]
    start = stream.start + (stream.first.size if stream.is_info else 0)
    return [_info_frame(stream), (start, stream.stop)]


def layout(data: Data, estimate: int) -> Layout:
    """Returns the layout of an MP3 file.

    Args:
        data: the file.
        estimate: number of samples per channel that libsndfile estimates; it reads no more than that.
    """
    streams = [stream for stream in _streams(data) if stream.frames > 0]
    longest = max((stream.frames for stream in streams), default=0)
    streams = [stream for stream in streams if stream.frames >= min(_MIN_RUN, longest) or stream.xing >= 0]
    losses, seconds = [], 0.0
    for stream in streams:
        one = stream.first.samples / stream.first.sample_rate
        seconds += stream.frames * one
        if stream.promised > stream.frames:
            missing = stream.promised - stream.frames
            reason = f"ends after {stream.frames} MPEG frames, though its header says {stream.promised}"
            losses.append(Loss(seconds, missing * one, reason))
    if len(streams) == 1:
        stream = streams[0]
        if max(stream.promised, estimate // stream.first.samples) >= stream.frames:
            return Layout([], losses)
    return Layout([Part(_pieces(stream)) for stream in streams], losses)


def is_plain(data: Data) -> bool:
    """Whether the beginning of the file does not contradict libsndfile's estimate of the length."""
    at = skip_tags(data)
    first = _frame(data, at)
    if first is None:
        return True
    stream = _Stream(at, first)
    stream.note_header(data)
    if stream.xing >= 0:
        flags, _, size = unpack_from(">III", data.read(stream.xing + 4, 12).ljust(12, b"\0"))
        return flags & 3 != 3 or abs(data.size - at - size) <= max(size // 20, 4096)
    for _ in range(_CHECKED):
        following = _frame(data, at)
        if following is None:
            return True
        if following.header >> 12 & 15 != first.header >> 12 & 15:
            return False
        at += following.size
    return True
