"""The store as a whole: cache, blocks, reading ahead, several processes, servers without ranges."""

import hashlib
import io
import logging
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import soundfile

from audio_diffusion.data.remote import RemoteError, RemoteStore

DATA = os.urandom(300_000)


def sha(start, stop):
    return hashlib.sha256(DATA[start:stop]).hexdigest()


def gets(web):
    return [request for request in web.requests if request[0] == "GET"]


def test_a_range_is_fetched_once_and_then_comes_from_the_cache_also_in_a_later_run(web, store):
    url = web.put("a.tar", DATA)
    copy = pickle.loads(pickle.dumps(store))
    assert [s.read(url, 5, 999, sha(5, 999)) for s in (store, store, copy)] == [DATA[5:999]] * 3
    assert len(gets(web)) == 1
    assert store.stats == {
        "requests": 1, "bytes": 994, "retries": 0, "cache_hits": 1, "cache_damaged": 0, "cache_evicted": 0
    }  # fmt: skip
    assert copy.stats["cache_hits"] == 1


def test_the_cache_keeps_addresses_queries_ranges_and_hashes_apart(web, store):
    a, b = web.put("x/a.tar", DATA), web.put("y/a.tar", DATA[::-1])
    assert store.read(a, 0, 10) != store.read(b, 0, 10)
    assert store.read(a, 1, 10) == DATA[1:10]
    assert store.read(f"{a}?v=2", 0, 10) == DATA[:10]
    web.put("x/a.tar", DATA[::-1])  # made anew, under the same name
    assert store.read(a, 0, 10, hashlib.sha256(DATA[::-1][:10]).hexdigest()) == DATA[::-1][:10]
    assert store.read(a, 0, 10, cache=False) == DATA[::-1][:10]


@pytest.mark.parametrize("name", ["cut_off", "flipped", "page_as_range"])
def test_what_is_wrong_is_never_kept(name, web, store, fault):
    do = fault.cut_off(False) if name == "cut_off" else getattr(fault, name)
    url = web.put("a.tar", DATA, do)
    with pytest.raises(RemoteError):
        store.read(url, 5, 999, sha(5, 999))
    web.put("a.tar", DATA)
    assert store.read(url, 5, 999, sha(5, 999)) == DATA[5:999]
    assert store.stats["cache_hits"] == 0


def test_damage_in_the_cache_is_fetched_anew(web, store, tmp_path):
    url = web.put("a.tar", DATA)
    store.read(url, 5, 999)
    (path,) = (p for p in (tmp_path / "cache").glob("??/*") if p.is_file())
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert store.read(url, 5, 999) == DATA[5:999]
    assert len(gets(web)) == 2
    assert store.stats["cache_damaged"] == 1


def test_a_file_fetches_only_the_blocks_that_are_read(web):
    store = RemoteStore(None, block_bytes=1000)
    file = store.open(web.put("a.tar", DATA), 500, 200_500)
    assert not gets(web)
    file.seek(100_000)
    assert file.read(2500) == DATA[100_500:103_000]
    assert file.read(0) == b""
    file.seek(-10, io.SEEK_END)
    assert file.read() == DATA[200_490:200_500]
    assert file.read(5) == b""
    file.seek(-10, io.SEEK_CUR)
    assert file.tell() == 199_990
    assert [part for _, _, part in gets(web)] == [
        f"bytes={start}-{start + 999}" for start in (100_500, 101_500, 102_500, 199_500)
    ]


def test_a_small_file_is_checked_by_its_hash_and_a_large_one_never_mixes_two(web, tmp_path):
    store = RemoteStore(str(tmp_path), retries=0, block_bytes=1000)
    url = web.put("a.tar", DATA)
    with pytest.raises(RemoteError, match="sha256"):
        store.open(url, 0, 1000, sha(1, 2))
    first = store.open(url, 0, 5000, "first").read(1500)
    web.put("a.tar", DATA[::-1])
    assert store.open(url, 0, 5000, "first").read(1500) == first == DATA[:1500]
    assert store.open(url, 0, 5000, "second").read(1500) == DATA[::-1][:1500]


def test_a_decoder_seeks_in_a_remote_file(web):
    file = io.BytesIO()
    samples = [((i * 7919) % 20_001 - 10_000) / 20_000 for i in range(200_000)]
    soundfile.write(file, samples, 16_000, format="FLAC")
    flac = file.getvalue()
    url = web.put("a.tar", b"x" * 512 + flac)
    store = RemoteStore(None, block_bytes=8192)
    with soundfile.SoundFile(store.open(url, 512, 512 + len(flac))) as sound:
        sound.seek(100_000)
        assert sound.read(1000) == pytest.approx(samples[100_000:101_000], abs=1e-4)
    assert store.stats["bytes"] < len(flac) / 2


def test_read_ahead_yields_items_in_order_with_their_bytes_and_fetches_each_range_once(web, bare):
    url = web.put("a.tar", DATA)
    ranges = [(url, 100 * (i % 30), 100 * (i % 30) + 50, "") for i in range(60)]
    seen = []
    for item in bare.read_ahead(((i, [part, part] if i % 2 else []) for i, part in enumerate(ranges)), num_threads=4):
        if item % 2:
            assert bare.read(*ranges[item]) == DATA[ranges[item][1] : ranges[item][2]]
        seen.append(item)
    assert seen == list(range(60))
    assert bare.stats["requests"] == len(gets(web)) == 15  # the second time around they are waited for, not fetched


def test_read_ahead_overlaps_requests_but_not_more_than_it_may(web, bare):
    now, most, lock = [0], [0], threading.Lock()

    def slow(handler, data, start, stop):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.03)
        with lock:
            now[0] -= 1
        handler.part(data, start, stop)

    url = web.put("a.tar", DATA, slow)
    taken = []

    def items():
        for i in range(30):
            taken.append(i)
            yield i, [(url, i, i + 1, "")]

    for done in bare.read_ahead(items(), num_ahead=8, num_threads=4):
        assert len(taken) <= done + 9
    assert 2 <= most[0] <= 4
    taken.clear()
    for done in bare.read_ahead(items(), num_ahead=8, num_threads=4, max_bytes=3):
        assert len(taken) <= done + 3


def test_an_error_ahead_is_raised_where_its_bytes_are_read_and_the_others_come(web, bare, fault):
    good, gone = web.put("good", DATA), web.put("gone", None)
    items = [(url, [(url, 0, 10, "")]) for url in (good, gone, good)]
    kinds = []
    for url in bare.read_ahead(items):
        try:
            kinds.append(bare.read(url, 0, 10) == DATA[:10])
        except RemoteError as error:
            kinds.append(error.kind)
    assert kinds == [True, "not_found", True]


def test_leaving_early_ends_requests_under_way(web, bare, fault):
    store = RemoteStore(None, stall_s=60, timeout_s=60)
    good, stalled = web.put("good", DATA), web.put("stalled", DATA, fault.stall)
    items = [(url, [(url, 0, 10, "")]) for url in (good, stalled, stalled)]
    ahead = store.read_ahead(items)
    assert next(ahead) == good
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 10  # of the 20 s that the server waits and the 60 s that the store would
    assert store.read(good, 0, 10) == DATA[:10]


@pytest.mark.parametrize("name", ["no_ranges", "no_ranges_no_length"])
def test_a_server_without_ranges_is_asked_for_each_object_once(name, web, store, fault):
    url = web.put("a.tar", DATA, getattr(fault, name))
    copies = [pickle.loads(pickle.dumps(store)) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        parts = pool.map(lambda i: copies[i].read(url, i, i + 1000, sha(i, i + 1000)), range(6))
    assert list(parts) == [DATA[i : i + 1000] for i in range(6)]
    assert sum(s.stats["bytes"] for s in copies) == len(DATA)
    assert store.read(url, 299_000, 300_000) == DATA[299_000:]


def test_a_server_without_ranges_needs_a_cache_that_can_hold_the_object(web, bare, fault, tmp_path):
    url = web.put("a.tar", DATA, fault.no_ranges)
    with pytest.raises(RemoteError, match=r"store\.cache_dir"):
        bare.read(url, 5, 10)
    with pytest.raises(RemoteError, match=r"store\.cache_gb"):
        RemoteStore(str(tmp_path / "small"), cache_gb=1e-4).read(url, 5, 10)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RemoteError, match="cache does not work"):
        RemoteStore(str(tmp_path / "file" / "cache")).read(url, 5, 10)


def test_a_whole_object_of_another_version_is_fetched_again(web, store, fault):
    url = web.put("a.tar", DATA, fault.no_ranges)
    store.read(url, 5, 10)
    web.put("a.tar", DATA[::-1], fault.no_ranges)
    newer = hashlib.sha256(DATA[::-1][5:10]).hexdigest()
    assert store.read(url, 5, 10, newer) == DATA[::-1][5:10]
    with pytest.raises(RemoteError) as caught:
        store.read(url, 5, 10, sha(6, 7))
    assert caught.value.kind == "hash"


def test_a_cache_that_cannot_be_written_does_not_stop_reading(web, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    store = RemoteStore(str(tmp_path / "file" / "cache"))
    url = web.put("a.tar", DATA)
    with caplog.at_level(logging.WARNING):
        assert [store.read(url, i, i + 9) for i in range(3)] == [DATA[i : i + 9] for i in range(3)]
    assert len(caplog.records) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_at_the_same_time_through_one_cache(method, web, store, fault):
    ranged, whole = web.put("ranged", DATA), web.put("whole", DATA, fault.no_ranges)
    assert store.read(ranged, 0, 5) == DATA[:5]  # connections and threads are there when it forks
    tasks = [(url, 100 * i, 100 * i + 5000, sha(100 * i, 100 * i + 5000)) for i in range(20) for url in (ranged, whole)]
    with multiprocessing.get_context(method).Pool(3) as pool:
        parts = pool.starmap(store.read, tasks * 2, chunksize=1)
    assert parts == [DATA[start:stop] for _, start, stop, _ in tasks] * 2
    assert store.read(*tasks[0]) == DATA[:5000]
    assert store.stats["cache_hits"] == 1
