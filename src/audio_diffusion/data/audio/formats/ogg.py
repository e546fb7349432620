"""Ogg files: finds their pages, concatenated streams, and gaps where pages are missing or damaged."""

import zlib
from collections.abc import Iterator
from struct import unpack_from
from typing import NamedTuple

from audio_diffusion.data.audio.formats import flac
from audio_diffusion.data.audio.formats.containers import Data, Layout, Loss, Part, Stitched

_REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))
_BEGIN, _END = 2, 4  # flags of a page: first and last page of a stream
_MAX_PAGE = 27 + 255 + 255 * 255
#: message for a stream whose last page has no end-of-stream flag
NO_END = "no page is marked as the end of the stream; it may have been cut off there"


class Page(NamedTuple):
    """One page: ``[start, stop)`` in the file, the offset of its body, and the fields of its header."""

    start: int
    body: int
    stop: int
    flags: int
    granule: int
    serial: int
    number: int


def checksum(page: bytes) -> int:
    """Returns the CRC of an Ogg page whose CRC field is zero: zlib's CRC with the bits of each byte reversed."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def pages(data: Data, at: int = 0) -> Iterator[Page | int]:
    """Yields the undamaged pages in order, and the offset of each damaged region between them."""
    damaged = -1
    while at < data.size:
        head = data.read(at, 27 + 255)
        count = head[26] if len(head) > 26 else 0
        body = 27 + count
        whole = data.read(at, body + sum(head[27:body])) if head[:4] == b"OggS" else b""
        complete = len(whole) >= 27 and len(whole) == body + sum(head[27:body])
        if complete and unpack_from("<I", whole, 22)[0] == checksum(whole[:22] + bytes(4) + whole[26:]):
            if damaged >= 0:
                yield damaged
                damaged = -1
            yield Page(at, at + body, at + len(whole), whole[5], *unpack_from("<qII", whole, 6))
            at += len(whole)
            continue
        damaged = at if damaged < 0 else damaged
        at = data.find(b"OggS", at + 1)
        if at < 0:
            break
    if damaged >= 0:
        yield damaged


def _codec(data: Data, page: Page) -> str:
    """Returns the codec of the stream that begins with a page; empty if it is not a supported audio codec."""
    start = data.read(page.body, 8)
    for magic, name in (
        (b"OpusHead", "opus"),
        (b"\x01vorbis", "vorbis"),
        (b"\x7fFLAC", "flac"),
        (b"Speex   ", "speex"),
    ):
        if start.startswith(magic):
            return name
    return ""


class _Link:
    """One of the consecutive streams of a file: its header pages, and its runs of pages without gaps."""

    def __init__(self, first: Page, codec: str):
        self.serial, self.codec, self.head, self.runs = first.serial, codec, [first], [[]]  # type: ignore[var-annotated]
        self.last = first

    def add(self, page: Page) -> None:
        """Adds the next page; a page whose number is not the next one begins a new run."""
        follows = page.number == self.last.number + 1
        self.last = page
        if page.granule == 0 and not self.runs[0] and follows:
            self.head.append(page)  # header pages contain no audio
        elif follows or not self.runs[-1]:
            self.runs[-1].append(page)
        else:
            self.runs.append([page])

    @property
    def has_end(self) -> bool:
        return bool(self.last.flags & _END)


def _links(data: Data) -> tuple[list[_Link], list[int], bool]:
    """Returns the audio streams in order, the offsets of damaged regions, and whether other data lie between their
    pages."""
    links: list[_Link] = []
    damaged: list[int] = []
    beginning = mixed = False  # beginning: among the first pages of multiplexed streams
    for page in pages(data):
        if isinstance(page, int):
            damaged.append(page)
            continue
        if page.flags & _BEGIN:
            codec = _codec(data, page)
            if codec and not (beginning and links):
                links.append(_Link(page, codec))
            else:
                mixed = True
            beginning = bool(links)
        else:
            beginning = False
            if links and page.serial == links[-1].serial:
                links[-1].add(page)
            else:
                mixed = True
    return [link for link in links if any(link.runs)], damaged, mixed


def layout(data: Data) -> Layout:
    """Returns the layout of an Ogg file."""
    links, damaged, mixed = _links(data)
    losses = []
    is_cut = bool(links and damaged and damaged[-1] >= links[-1].last.stop and not links[-1].has_end)
    if is_cut:
        losses.append(Loss(-1.0, 0.0, "it is cut off in its last page"))
    simple = len(links) == 1 and len(links[0].runs) == 1 and links[0].codec != "flac"
    if not links or (simple and not mixed and all(place >= links[0].last.stop for place in damaged)):
        if links and not links[0].has_end and not is_cut:
            losses.append(Loss(-1.0, 0.0, NO_END, is_certain=False))
        return Layout([], losses)
    parts: list[Part] = []
    for link in links:
        if link.codec == "flac":
            parts += _flac(data, link, losses)
            continue
        runs = [run for run in link.runs if run]
        for number, run in enumerate(runs):
            ends = [page.granule for page in run if page.granule >= 0]
            pieces = [*_joined(link.head), *_joined(run)]
            has_end = link.has_end or run is not runs[-1] or (is_cut and link is links[-1])
            parts.append(Part(pieces, end=ends[-1] if ends else 0, continues=number > 0, has_end=has_end))
    return Layout(parts, losses)


def _flac(data: Data, link: _Link, losses: list[Loss]) -> list[Part]:
    """Returns the parts of a FLAC stream in Ogg: its concatenated packets form a native FLAC file."""
    following = [page for page in (*link.head[1:], *(page for run in link.runs for page in run))]
    native = Data(Stitched(data, [(link.head[0].body + 9, link.head[0].stop), *((p.body, p.stop) for p in following)]))
    inner, _ = flac.layout(native)
    losses += inner.losses
    has_end = link.has_end or not inner.parts  # the end is known if the header gives the length
    parts = inner.parts or [Part([(0, native.size)])]
    return [Part(part.pieces, data=native, has_end=has_end or part is not parts[-1]) for part in parts]


def is_plain(data: Data) -> bool:
    """Whether the last page belongs to the same stream as the first one."""
    tail = data.read(max(data.size - _MAX_PAGE, 0), _MAX_PAGE)
    last = tail.rfind(b"OggS")
    return last < 0 or tail[last + 14 : last + 18] in (b"", data.read(14, 4))


def _joined(run: list[Page]) -> list[tuple[int, int] | bytes]:
    """Merges adjacent pages into ranges of bytes."""
    stretches: list[tuple[int, int]] = []
    for page in run:
        if stretches and stretches[-1][1] == page.start:
            stretches[-1] = (stretches[-1][0], page.stop)
        else:
            stretches.append((page.start, page.stop))
    return list(stretches)
