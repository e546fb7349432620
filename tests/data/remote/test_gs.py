"""gs against a stand-in for the few requests of its JSON interface that are made."""

import json

import pytest

from audio_diffusion.data.remote import RemoteError, RemoteStore

pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'audio_diffusion[dev]'")

DATA = bytes(range(256)) * 40
URL = "gs://audio/set/x.tar"


@pytest.fixture
def gs(web):
    info = {"name": "set/x.tar", "bucket": "audio", "size": str(len(DATA))}
    web.put("storage/v1/b/audio/o/set%2Fx.tar", json.dumps(info).encode())
    web.put("storage/v1/b/audio/o", json.dumps({"items": [info]}).encode())
    address = web.put("download/storage/v1/b/audio/o/set%2Fx.tar", DATA).partition("/download")[0]
    options = {"gs": {"endpoint_url": address, "token": "anon"}}
    return RemoteStore(None, stall_s=0.4, timeout_s=2, retries=1, backoff_s=0.01, storage_options=options)


def test_objects_are_listed_measured_and_read(gs):
    assert gs.list("gs://audio/set") == gs.list("gs://audio/set/*.tar") == [URL]
    assert gs.size(URL) == len(DATA)
    assert gs.read(URL) == DATA
    assert gs.read(URL, 10, 999) == DATA[10:999]
    with pytest.raises(RemoteError) as caught:
        gs.read("gs://audio/none", 0, 5)
    assert caught.value.kind == "not_found"


def test_failures_are_told_apart_and_tried_again_by_the_store_alone(gs, web, fault):
    expected = {
        "server": (fault.status(500), 2), "busy": (fault.status(429), 2), "forbidden": (fault.status(403), 1),
        "login": (fault.status(401), 1), "short": (fault.cut_off(True), 2), "stalled": (fault.stall, 2),
    }  # fmt: skip
    for kind, (do, tries) in expected.items():
        web.put("download/storage/v1/b/audio/o/set%2Fx.tar", DATA, do)
        web.requests.clear()
        with pytest.raises(RemoteError) as caught:
            gs.read(URL, 10, 999)
        assert caught.value.kind == {"busy": "server", "login": "forbidden"}.get(kind, kind)
        assert len(web.requests) == tries
