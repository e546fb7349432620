"""What a web server can do wrong, told apart; the server is on loopback."""

import asyncio
import hashlib
import logging
import time
from types import SimpleNamespace

import pytest
from yarl import URL

from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.remote.http import _check_redirect

DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA[100:5000]).hexdigest()


def read(store, url):
    return store.read(url, 100, 5000, SHA)


def kind_of(store, url):
    with pytest.raises(RemoteError) as caught:
        read(store, url)
    return caught.value.kind


def test_a_range_and_a_whole_object(web, store):
    url = web.put("a.tar", DATA)
    assert read(store, url) == DATA[100:5000]
    assert store.read(url) == DATA
    assert store.read(url, 10_000) == DATA[10_000:]
    assert store.read(url, 7, 7) == b""
    assert store.size(url) == len(DATA)


def test_an_empty_object_has_size_zero(web, store):
    url = web.put("empty", b"")
    assert store.size(url) == 0
    assert store.read(url) == b""


@pytest.mark.parametrize(
    "name", ["status 500", "status 503", "status 429", "cut_off", "cut_off_no_length", "stall", "page", "page_as_range",
             "flipped", "shifted", "reset"],
)  # fmt: skip
def test_what_passes_is_tried_again_in_sight_and_the_right_bytes_come(name, web, store, fault, caplog):
    first, _, code = name.partition(" ")
    faults = {"status": fault.status(int(code or 0)), "cut_off": fault.cut_off(True),
              "cut_off_no_length": fault.cut_off(False)}  # fmt: skip
    url = web.put("a.tar", DATA, faults.get(first) or getattr(fault, first), times=2)
    with caplog.at_level(logging.WARNING):
        assert read(store, url) == DATA[100:5000]
    assert store.stats["retries"] == 2
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "try 2 of 3" in caplog.messages[0]
    assert url in caplog.messages[0]


def test_failures_are_told_apart(web, fault):
    store = RemoteStore(None, stall_s=0.3, timeout_s=0.5, retries=1, backoff_s=0.01)
    faults = {
        "server": fault.status(500), "forbidden": fault.status(403), "not_found": fault.status(404),
        "refused": fault.status(418), "short": fault.cut_off(False), "stalled": fault.stall, "timeout": fault.drip,
        "html": fault.page, "hash": fault.flipped, "ranges": fault.no_ranges,
    }  # fmt: skip
    assert {kind: kind_of(store, web.put(kind, DATA, do)) for kind, do in faults.items()} == {k: k for k in faults}
    tries = {kind: sum(path == f"/{kind}" for _, path, _ in web.requests) for kind in faults}
    once = {"forbidden", "not_found", "refused", "ranges"}
    assert tries == {kind: 1 if kind in once else 2 for kind in faults}
    assert kind_of(store, "http://127.0.0.1:1/closed") == "connection"


def test_an_error_says_address_range_expectation_and_tries(web, bare, fault):
    url = web.put("a.tar", DATA, fault.cut_off(False))
    with pytest.raises(RemoteError, match=r"a\.tar bytes 100-4999: expected 4900 bytes, got 2450 .*tried 3 times"):
        read(bare, url)


def test_a_whole_object_cut_off_without_length_is_found_by_its_size(web, bare, fault):
    url = web.put("a.json", DATA)
    assert bare.size(url) == len(DATA)
    web.put("a.json", DATA, fault.cut_off(False, ranged=False))
    with pytest.raises(RemoteError) as caught:
        bare.read(url, 0, len(DATA))
    assert caught.value.kind == "short"


def test_a_server_that_says_no_length_is_read_to_its_end_and_checked_by_the_hash(web, bare, fault):
    url = web.put("a.json", DATA, lambda handler, data, start, stop: handler.answer(200, data, None))
    assert bare.read(url) == DATA
    with pytest.raises(RemoteError, match="sha256"):
        bare.read(url, sha256="0" * 64)


def test_a_server_may_ask_for_a_pause(web, fault):
    store = RemoteStore(None, retries=1, backoff_s=0)
    start = time.monotonic()
    assert read(store, web.put("a.tar", DATA, fault.status(503, Retry_After="1"), times=1)) == DATA[100:5000]
    assert time.monotonic() - start >= 1


def test_past_the_end_of_an_object_is_short(web, bare):
    url = web.put("a.tar", DATA)
    for start in (len(DATA) - 1, len(DATA)):
        with pytest.raises(RemoteError) as caught:
            bare.read(url, start, len(DATA) + 5)
        assert caught.value.kind == "short"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_stay_on_the_web(target, web, bare, fault):
    good = web.put("good", DATA)
    assert read(bare, web.put("moved", DATA, fault.status(302, Location=good))) == DATA[100:5000]
    assert kind_of(bare, web.put("away", DATA, fault.status(302, Location=target))) == "refused"


def test_an_encrypted_address_does_not_redirect_to_an_open_one():
    response = SimpleNamespace(headers={"Location": "http://h/x"}, close=lambda: None)
    with pytest.raises(RemoteError, match="from https to http"):
        asyncio.run(_check_redirect(None, None, SimpleNamespace(url=URL("https://h/x"), response=response)))
    response.headers["Location"] = "/elsewhere"
    asyncio.run(_check_redirect(None, None, SimpleNamespace(url=URL("https://h/x"), response=response)))


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "/etc/passwd", "pipe:id", "ftp://h/x", "simplecache::http://h/x"]
)
def test_nothing_local_is_read_through_an_address(url, store):
    for use in (store.read, store.size, store.list):
        with pytest.raises(ValueError, match="expected"):
            use(url)


def test_credentials_are_neither_logged_nor_in_errors(web, bare, fault, caplog):
    url = web.put("a.tar", DATA, fault.status(500)).replace("http://", "http://me:secret@") + "?signature=secret"
    with pytest.raises(RemoteError) as caught:
        bare.read(url, 0, 10)
    closed = "http://me:secret@127.0.0.1:1/x?signature=secret"
    with pytest.raises(RemoteError) as refused:
        bare.read(closed, 0, 10)
    assert "secret" not in caplog.text + str(caught.value) + str(refused.value)
    assert len(caplog.records) == 4


def test_options_of_a_scheme_reach_its_requests(web):
    seen = []
    url = web.put("a.tar", DATA, lambda h, data, *part: (seen.append(h.headers["X-Token"]), h.part(data, *part)))
    store = RemoteStore(None, storage_options={"http": {"headers": {"X-Token": "abc"}}})
    assert read(store, url) == DATA[100:5000]
    assert seen == ["abc"]


def test_the_objects_a_page_links_to_are_listed(web, bare):
    links = "".join(f'<a href="train-{i}.tar">x</a>' for i in (1, 0))
    web.put("s/", None, lambda h, *_: h.answer(200, links.encode(), **{"Content-Type": "text/html"}))
    url = web.put("s", None, lambda h, *_: h.answer(200, links.encode(), **{"Content-Type": "text/html"}))
    expected = [f"{url}/train-0.tar", f"{url}/train-1.tar"]
    assert bare.list(url) == bare.list(f"{url}/") == bare.list(f"{url}/train-*.tar") == expected
    with pytest.raises(RemoteError) as caught:
        bare.list(web.put("gone", None))
    assert caught.value.kind == "not_found"


@pytest.mark.parametrize(
    "bad", [{"cache_gb": 0}, {"stall_s": 0}, {"timeout_s": -1}, {"block_bytes": 0}, {"retries": -1}, {"backoff_s": -1},
            {"storage_options": {"endpoint_url": "x"}}],
)  # fmt: skip
def test_impossible_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RemoteStore(None, **bad)
