"""s3 against moto's server on loopback."""

import logging
import socket
import threading

import pytest

from audio_diffusion.data.remote import RemoteError, RemoteStore

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'audio_diffusion[dev]'")
moto_server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'audio_diffusion[dev]'")

DATA = bytes(range(256)) * 400
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint():
    """The address of an S3 server with objects in the bucket ``audio``."""
    import boto3

    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key",
                          aws_secret_access_key="secret")  # fmt: skip
    client.create_bucket(Bucket="audio")
    for name in ("set/train-1.tar", "set/train-0.tar", "set/manifest.json", "set/deeper/x.tar", "other.tar"):
        client.put_object(Bucket="audio", Key=name, Body=DATA + name.encode())
    yield address
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    """The usual environment, and nothing of this machine's."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(endpoint, tmp_path):
    options = {"s3": {"endpoint_url": endpoint}}
    return RemoteStore(str(tmp_path / "cache"), stall_s=5, retries=2, backoff_s=0.01, storage_options=options)


def test_folders_and_globs_are_listed(s3):
    assert s3.sizes("s3://audio/set")["s3://audio/set/train-0.tar"] == len(DATA) + 15
    shards = ["s3://audio/set/train-0.tar", "s3://audio/set/train-1.tar"]
    assert s3.list("s3://audio/set") == s3.list("s3://audio/set/") == ["s3://audio/set/manifest.json", *shards]
    assert s3.list("s3://audio/set/train-*.tar") == s3.list("s3://audio/set/train-[01].tar") == shards
    assert s3.list("s3://audio/set/nothing-*.tar") == []
    below = ["s3://audio/set/deeper/x.tar", "s3://audio/set/manifest.json", *shards]
    assert s3.list("s3://audio/set", recursive=True) == s3.list("s3://audio/set/", recursive=True) == below


def test_ranges_and_whole_objects_are_read_ahead_and_cached(s3):
    url = "s3://audio/set/train-0.tar"
    assert s3.size(url) == len(DATA) + 15
    assert s3.read(url) == DATA + b"set/train-0.tar"
    parts = [(url, i, i + 100, "") for i in range(0, 3000, 100)]
    for _ in range(2):
        for _, start, stop, _ in s3.read_ahead((part, [part]) for part in parts):
            assert s3.read(url, start, stop) == DATA[start:stop]
    assert s3.stats["cache_hits"] == len(parts)
    assert s3.open(url, 1000, 2000).read() == DATA[1000:2000]


@pytest.mark.parametrize("url", ["s3://audio/set/none.tar", "s3://nobucket/x.tar", "s3://audio/set"])
def test_what_is_not_there_is_said_at_once(s3, url):
    for use in (lambda: s3.read(url, 0, 10), lambda: s3.size(url)):
        with pytest.raises(RemoteError) as caught:
            use()
        assert caught.value.kind == "not_found"
    assert s3.stats["retries"] == 0
    if "none" not in url and url != "s3://audio/set":
        with pytest.raises(RemoteError):
            s3.list(url)


def test_past_the_end_is_short(s3):
    for start in (len(DATA), 10 * len(DATA)):
        with pytest.raises(RemoteError) as caught:
            s3.read("s3://audio/other.tar", start, start + 100)
        assert caught.value.kind == "short"


def failure(web, fault, **options):
    """The kind of error, and the tries, with a server that is not quite S3."""
    address = web.put("audio/x.tar", DATA, fault).removesuffix("/audio/x.tar")
    store = RemoteStore(None, stall_s=0.4, timeout_s=30, retries=1, backoff_s=0.01,
                        storage_options={"s3": {"endpoint_url": address, **options}})  # fmt: skip
    web.put("audio/good.tar", DATA)
    store.read("s3://audio/good.tar", 0, 1)  # the first connection may take seconds on a busy machine
    store._fetcher.timeout_s = 1
    web.requests.clear()
    with pytest.raises(RemoteError) as caught:
        store.read("s3://audio/x.tar", 10, 5000)
    return caught.value.kind, len(web.requests)


@pytest.mark.slow
def test_failures_of_a_bucket_are_told_apart_and_tried_again_by_the_store_alone(web, fault, caplog):
    with caplog.at_level(logging.WARNING):
        assert failure(web, fault.status(500)) == ("server", 2)
        assert "try 2 of 2" in caplog.messages[-1]
    assert failure(web, fault.status(503)) == ("server", 2)
    assert failure(web, fault.status(403)) == ("forbidden", 1)
    assert failure(web, fault.cut_off(True)) == ("short", 2)
    assert failure(web, fault.cut_off(False)) == ("short", 2)
    assert failure(web, fault.stall) == ("stalled", 2)
    assert failure(web, fault.drip) == ("timeout", 2)


def test_without_credentials_it_says_so_at_once(endpoint, monkeypatch, tmp_path):
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = RemoteStore(None, storage_options={"s3": {"endpoint_url": endpoint}})
    with pytest.raises(RemoteError, match="credentials") as caught:
        store.read("s3://audio/other.tar", 0, 10)
    assert caught.value.kind == "forbidden"


def test_a_closed_port_is_a_failed_connection():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = RemoteStore(None, retries=0, storage_options={"s3": {"endpoint_url": address}})
    with pytest.raises(RemoteError) as caught:
        store.read("s3://audio/x", 0, 10)
    assert caught.value.kind == "connection"


def test_first_requests_together_share_one_pool(s3):
    stores = [threading.Thread(target=s3.read, args=("s3://audio/other.tar", i, i + 5)) for i in range(8)]
    for thread in stores:
        thread.start()
    for thread in stores:
        thread.join()
    assert s3.stats["requests"] == 8
