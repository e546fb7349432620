"""A file object whose data are fetched in blocks."""

import io
from collections import OrderedDict
from collections.abc import Callable

_BLOCKS_KEPT = 4


class RemoteFile(io.RawIOBase):
    """A read-only file that fetches blocks when they are read, and keeps the latest few.

    Args:
        num_bytes: length of the file in bytes.
        block_bytes: size of a block; the last one may be shorter.
        read_block: returns bytes [start, stop).
    """

    def __init__(self, num_bytes: int, block_bytes: int, read_block: Callable[[int, int], bytes]):
        self._num_bytes, self._block_bytes, self._read_block = num_bytes, block_bytes, read_block
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        # reads up to the end of the file, because decoders interpret a short read as the end
        wanted = max(min(len(buffer), self._num_bytes - self._at), 0)
        done = 0
        while done < wanted:
            index, offset = divmod(self._at, self._block_bytes)
            chunk = memoryview(self._block(index))[offset : offset + wanted - done]
            buffer[done : done + len(chunk)] = chunk
            done += len(chunk)
            self._at += len(chunk)
        return done

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            start = index * self._block_bytes
            self._blocks[index] = self._read_block(start, min(start + self._block_bytes, self._num_bytes))
            if len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return self._blocks[index]
