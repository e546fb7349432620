import errno
import fcntl
import logging
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio_diffusion.data.remote.cache import Cache

BLOCK = 1 << 18
DATA = os.urandom(2 * BLOCK + 1000)


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 10**9)


def entries(cache):
    return [p for p in cache.folder.glob("??/*") if p.is_file()]


def leftovers(cache):
    return list((cache.folder / "partial").iterdir())


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, len(DATA) + 5), length=st.integers(0, len(DATA) + 5))
def test_any_part_of_an_entry_comes_back(tmp_path_factory, start, length):
    cache = Cache(str(tmp_path_factory.getbasetemp() / "shared"), 10**9)
    if cache.get("key") is None:
        cache.put("key", DATA)
    assert cache.get("key") == DATA
    assert cache.get("key", start, start + length) == DATA[start : start + length]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_entries_of_any_size(cache, size):
    cache.put("key", DATA[:size])
    assert cache.get("key") == DATA[:size]
    assert cache.get("other") is None
    assert not leftovers(cache)


def test_an_entry_may_be_written_in_pieces_and_is_not_there_before_it_is_complete(cache):
    with cache.writer("key") as writer:
        for at in range(0, len(DATA), 77_777):
            writer.write(DATA[at : at + 77_777])
        assert cache.get("key") is None
        writer.commit()
    assert cache.get("key", BLOCK - 5, BLOCK + 5) == DATA[BLOCK - 5 : BLOCK + 5]


def test_an_unfinished_entry_leaves_nothing(cache):
    with cache.writer("key") as writer:
        writer.write(DATA)
    assert cache.get("key") is None
    assert not leftovers(cache) + entries(cache)


@pytest.mark.parametrize("at", [0, len(DATA) - 1, len(DATA) + 1, -1, -10])
def test_a_flipped_bit_anywhere_is_found_and_the_entry_dropped(cache, at, caplog):
    cache.put("key", DATA)
    path = cache.path("key")
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    assert cache.get("key") is None
    assert not path.exists()
    assert cache.damaged == len(caplog.records) == 1


@pytest.mark.parametrize("keep", [0, 10, BLOCK, len(DATA), -1])
def test_a_truncated_or_empty_or_zeroed_entry_is_found(cache, keep):
    cache.put("key", DATA)
    path = cache.path("key")
    content = path.read_bytes()
    for damaged in (content[:keep], bytes(len(content))):
        path.write_bytes(damaged)
        assert cache.get("key") is None
        cache.put("key", DATA)


def test_the_least_recently_used_make_room(tmp_path):
    cache = Cache(str(tmp_path), 10_000)
    for key in range(9):
        cache.put(str(key), bytes(1000))
        os.utime(cache.path(str(key)), (key, key))
    assert cache.get("0") is not None  # used now
    for key in range(9, 12):
        cache.put(str(key), bytes(1000))
    left = [key for key in range(12) if cache.get(str(key)) is not None]
    assert {0, 9, 10, 11} <= set(left)
    assert not {1, 2, 3} & set(left)
    assert cache.evicted == 12 - len(left)
    assert sum(path.stat().st_size for path in entries(cache)) <= 10_000


def test_the_bound_holds_for_many_writers_at_once_and_for_a_second_run(tmp_path):
    bound = 20_000
    caches = [Cache(str(tmp_path), bound) for _ in range(4)]

    def fill(cache, name):
        for i in range(30):
            cache.put(f"{name} {i}", bytes(1000))

    threads = [threading.Thread(target=fill, args=(c, i)) for i, c in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bound / 2 < sum(path.stat().st_size for path in entries(caches[0])) <= bound
    (tmp_path / "size").write_bytes(b"")  # as after a crash
    again = Cache(str(tmp_path), bound // 2)
    again.put("new", bytes(1000))
    assert sum(path.stat().st_size for path in entries(again)) <= bound // 2
    assert again.get("new") is not None


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path):
    cache = Cache(str(tmp_path), 100)
    cache.put("key", bytes(101))
    assert cache.get("key") is None


def test_leftovers_of_killed_writers_go_at_the_next_start_and_those_of_living_ones_stay(cache):
    cache.put("key", b"x")
    dead, living, young = (cache.folder / "partial" / name for name in ("dead", "living", "young"))
    for path in (dead, living, young):
        path.write_bytes(b"half")
    for path in (dead, living):
        os.utime(path, (time.time() - 1000,) * 2)
    with open(living, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Cache(str(cache.folder), 10**9).put("other", b"x")
        assert sorted(leftovers(cache)) == [living, young]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_costs_one_warning_and_the_cache(cache, code, monkeypatch, caplog):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    cache.put("before", b"x")
    monkeypatch.setattr("audio_diffusion.data.remote.cache.Writer.commit", fail)
    with caplog.at_level(logging.WARNING):
        cache.put("a", DATA)
        cache.put("b", DATA)
    assert [os.strerror(code) in message for message in caplog.messages] == [True]
    assert cache.get("a") is None
    assert cache.get("before") == b"x"
    assert not leftovers(cache)


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(str(tmp_path / "file" / "cache"), 10**9)
    cache.put("a", b"x")
    assert cache.get("a") is None
    assert len(caplog.records) == 1
