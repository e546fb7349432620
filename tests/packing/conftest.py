"""A small folder to pack, a web server for folders, and a look into shards that uses nothing of the project."""

import functools
import http.server
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def clips_of() -> Callable[[Path], dict[str, tuple[str, bytes, dict[str, Any]]]]:
    """clips_of(shards) -> {source, with @ and its number for a piece: (split, audio bytes, json)}."""
    return _clips_of


def _clips_of(output: Path) -> dict[str, tuple[str, bytes, dict[str, Any]]]:
    """Source name (and piece) -> (split, audio bytes, json) of all clips in all shards."""
    clips = {}
    for shard in sorted(output.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for name, data in members.items():
            key, _, extension = name.rpartition(".")
            if extension != "json":
                meta = json.loads(members[f"{key}.json"])
                name = f"{meta['source']}@{meta['segment']}" if "segment" in meta else meta["source"]
                assert name not in clips
                clips[name] = (shard.name.split("-")[0], data, meta)
    return clips


@pytest.fixture
def folder(tmp_path: Path, encode: Encode, noise: Callable[..., Any]) -> Path:
    """A folder to which a test adds what it needs: 12 short files of two classes."""
    for i in range(12):
        path = tmp_path / "in" / ("a" if i % 2 else "b") / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(100 + i, seed=i), 16_000))
    return tmp_path / "in"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Lists folders as pages, and sends whole files."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """serve(folder) -> its address on a web server."""
    servers = []

    def serving(folder: Path) -> str:
        handler = functools.partial(_Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield serving
    for server in servers:
        server.shutdown()
        server.server_close()
