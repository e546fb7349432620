"""Decoders of members other than audio. They run no code and allocate no more memory than the member's size.

WebDataset's own decoders, which unpickle some members, are not used.
"""

import ast
import json
import struct
from collections.abc import Iterable

import numpy as np

MAX_BYTES = 16_000_000  # maximum size of a member other than audio
MAX_JSON_BYTES = 1_000_000
MAX_CLS_BYTES = 1_000
MAX_JSON_DEPTH = 64


def _limit(member: bytes | memoryview, limit: int, kind: str) -> bytes:
    if len(member) > limit:
        raise ValueError(f"its {kind} has {len(member)} bytes, more than {limit}")
    return bytes(member)


def read_json(member: bytes | memoryview) -> dict:
    """Reads a json object.

    Raises:
        ValueError: if it is not one, has more than ``MAX_JSON_BYTES``, or is nested deeper than ``MAX_JSON_DEPTH``.
    """
    text = _limit(member, MAX_JSON_BYTES, "json")
    try:
        meta = json.loads(text)
    except RecursionError as error:
        raise ValueError("its json is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"its json cannot be read: {error}") from error
    if text.count(b"{") + text.count(b"[") > MAX_JSON_DEPTH and _depth(meta) > MAX_JSON_DEPTH:
        raise ValueError("its json is nested too deeply")
    if not isinstance(meta, dict):
        raise ValueError(f"its json is a {type(meta).__name__}, not an object")
    return meta


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]:
        depth += 1
    return depth


def _inside(value: dict | list) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value


def read_text(member: bytes | memoryview) -> str:
    """Reads a text in UTF-8.

    Raises:
        ValueError: if it is not UTF-8, or has more than ``MAX_JSON_BYTES``.
    """
    try:
        return _limit(member, MAX_JSON_BYTES, "text").decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"its text is not UTF-8: {error}") from error


def read_npy(member: bytes | memoryview) -> np.ndarray:
    """Reads an array of numbers in NumPy's .npy format as float32.

    Raises:
        ValueError: if it is not in this format, contains objects (which numpy would unpickle), has more than
            ``MAX_BYTES``, or if its size does not match its header.
    """
    data = _limit(member, MAX_BYTES, "npy")
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise ValueError("its npy is not in NumPy's format")
    long = data[6] > 1
    (length,) = struct.unpack("<I" if long else "<H", data[8:12] if long else data[8:10])
    start = (12 if long else 10) + length
    try:
        header = ast.literal_eval(data[12 if long else 10 : start].decode("latin1")) if length < 10_000 else {}
        dtype, shape = np.dtype(header["descr"]), header["shape"]
        fortran = bool(header["fortran_order"])
        size = int(np.prod(shape, dtype=np.float64))
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"its npy has a header that cannot be read: {error}") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"its npy contains {dtype}, not numbers")
    if size * dtype.itemsize != len(data) - start:
        raise ValueError(f"its npy holds {len(data) - start} bytes, where its header says {size * dtype.itemsize}")
    flat = np.frombuffer(data, dtype, offset=start).astype(np.float32)
    return flat.reshape(shape, order="F" if fortran else "C")


def read_cls(member: bytes | memoryview) -> str:
    """Reads the class name or index in a ``.cls`` member, as WebDataset's tools write it.

    Raises:
        ValueError: if it is not UTF-8, has more than ``MAX_CLS_BYTES``, or is empty.
    """
    text = read_text(_limit(member, MAX_CLS_BYTES, "cls")).strip()
    if not text:
        raise ValueError("its cls is empty")
    return text


READERS = {"json": read_json, "npy": read_npy, "txt": read_text, "cls": read_cls}
