"""FLAC files: finds the real length from the last frame, and detects concatenated files."""

from struct import unpack_from

from audio_diffusion.data.audio.formats.containers import Data, Layout, Loss, Part, skip_tags, trim_tags

_BEGIN = b"fLaC\x00\x00\x00\x22"  # first bytes of every FLAC file
_SIZES = (0, 192, 576, 1152, 2304, 4608, -8, -16, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_MAX_FRAME = 1 << 20  # bytes; used if the header does not give the size of the largest frame
_ZEROS = 8  # number of zeros tried as the end of a frame's checksum


def _table(polynomial: int, bits: int) -> list[int]:
    table, top = [], 1 << (bits - 1)
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ polynomial if value & top else value << 1
        table.append(value & ((1 << bits) - 1))
    return table


_CRC8, _CRC16 = _table(0x07, 8), _table(0x8005, 16)


def crc8(data: bytes) -> int:
    """Returns the CRC-8 of a frame's header; 0 if ``data`` ends with the correct checksum."""
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def crc16(data: bytes) -> int:
    """Returns the CRC-16 of a frame; 0 if ``data`` ends with the correct checksum."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value


def _first_sample(frame: bytes, block_size: int) -> tuple[int, int] | None:
    """Returns (index of the first sample, number of samples) of a frame; None if this is not a valid frame header."""
    if len(frame) < 6 or frame[0] != 0xFF or frame[1] & 0xFE != 0xF8 or frame[3] & 1 or frame[2] & 15 == 15:
        return None
    lead = frame[4]
    length = 1 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length()
    if length > 7 or 0x80 <= lead < 0xC0 or any(byte & 0xC0 != 0x80 for byte in frame[5 : 4 + length]):
        return None
    number = lead if length == 1 else lead & ((1 << max(7 - length, 0)) - 1)
    for byte in frame[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    at, size = 4 + length, _SIZES[frame[2] >> 4]
    if size < 0:
        more = -size // 8
        size, at = int.from_bytes(frame[at : at + more], "big") + 1, at + more
    at += {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
    if size == 0 or crc8(frame[: at + 1]):
        return None
    return (number if frame[1] & 1 else number * block_size), size


class _Stream:
    """One of several concatenated FLAC files, in the bytes ``[start, stop)``."""

    def __init__(self, data: Data, start: int, stop: int):
        self._data, self.start, self.stop = data, start, stop
        info = data.read(start + 8, 34)
        smallest, largest, self._max_frame = *unpack_from(">HH", info), int.from_bytes(info[7:10], "big")
        packed = int.from_bytes(info[10:18], "big")
        self.sample_rate, self.promised = packed >> 44, packed & ((1 << 36) - 1)
        self._block_size = largest if smallest == largest else smallest
        self.is_cut = False
        self.frames, self.end = self._find_end()

    def _find_end(self) -> tuple[int, int]:
        """Returns the number of samples per channel in complete frames, and the offset at which the last complete frame
        ends; (0, 0) if there is none."""
        stop = trim_tags(self._data, self.stop)
        while stop > self.start and self._data.read(stop - 4096, 4096) == bytes(4096):
            stop -= 4096
        window = self._data.read(max(stop - 2 * (self._max_frame or _MAX_FRAME) - 4096, self.start), 1 << 22)
        window = window[: stop - max(stop - 2 * (self._max_frame or _MAX_FRAME) - 4096, self.start)]
        base, used = stop - len(window), len(window.rstrip(b"\0"))
        at = used
        while (at := max(window.rfind(b"\xff\xf8", 0, at), window.rfind(b"\xff\xf9", 0, at))) >= 0:
            found = _first_sample(window[at : at + 32], self._block_size)
            if found is None:
                continue
            value = crc16(window[at:used])
            for end in range(used, min(used + _ZEROS, len(window)) + 1):
                if value == 0:
                    return sum(found), base + end
                value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8]
            self.is_cut = True
            return found[0], base + at  # the frame is cut off, or data other than audio follow it
        return 0, 0

    def piece(self) -> list[tuple[int, int] | bytes]:
        """Returns the pieces of the stream, with its real length in the header."""
        head = self._data.read(self.start + 18, 8)
        packed = int.from_bytes(head, "big") >> 36 << 36 | self.frames
        return [(self.start, self.start + 18), packed.to_bytes(8, "big"), (self.start + 26, self.end)]


def layout(data: Data) -> tuple[Layout, int]:
    """Returns the layout of a FLAC file, and its number of frames if the header claims more (else 0)."""
    start = skip_tags(data)
    starts = [start]
    while (following := data.find(_BEGIN, starts[-1] + len(_BEGIN))) >= 0:
        starts.append(following)
    if data.read(start, len(_BEGIN)) != _BEGIN:
        return Layout(), 0
    streams = [_Stream(data, a, b) for a, b in zip(starts, [*starts[1:], data.size], strict=True)]
    losses, seconds = [], 0.0
    for stream in streams:
        seconds += stream.frames / max(stream.sample_rate, 1)
        if 0 < stream.frames < stream.promised:
            what = "broken" if stream.is_cut else "ends"
            reason = f"{what} after {stream.frames} frames, though its header says {stream.promised}"
            losses.append(Loss(seconds, (stream.promised - stream.frames) / stream.sample_rate, reason))
    if len(streams) == 1 and (streams[0].promised or not streams[0].frames):
        return Layout([], losses), streams[0].frames if losses else 0
    return Layout([Part(stream.piece()) for stream in streams if stream.frames], losses), 0
