"""The DataModule on shards that lie elsewhere: the same stream as from the disk, whatever the server does."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.data.order import StreamOrder
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards.find import read_classes
from audio_diffusion.data.stream import Reading
from audio_diffusion.data.training_data import CropFormat


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., AudioDataModule]:
    """make_data(train, ...) -> a DataModule ready to give batches, with a cache of its own."""

    def made(train: str, num_workers: int = 0, cache: str = "cache", s3: str = "", **options: Any) -> AudioDataModule:
        store = RemoteStore(
            str(tmp_path / cache), stall_s=1, timeout_s=20, retries=2, backoff_s=0.01,
            storage_options={"s3": {"endpoint_url": s3}} if s3 else None,
        )  # fmt: skip
        options = {
            "val": None,
            "classes": [],
            "batch_size": 4,
            "max_steps": 12,
            "shuffle_block": 16,
            "seed": 2,
        } | options
        data = AudioDataModule(
            train,
            crop=CropFormat(16_000, 1, 2048),
            num_workers=num_workers,
            store=store,
            order=StreamOrder(options.pop("seed"), options.pop("shuffle_block")),
            reading=Reading(options.pop("classes")),
            **options,
        )
        data.trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        return data

    return made


def batches_of(data: AudioDataModule) -> list[AudioBatch]:
    data.prepare_data()
    data.setup()
    return list(data.train_dataloader())


def contents(batches: list[AudioBatch]) -> list[tuple[tuple[int, ...], tuple[str, ...], bytes]]:
    return [(batch.positions, batch.keys, batch.audio.numpy().tobytes()) for batch in batches]


def serve(web: Any, folder: Path) -> str:
    """Puts a folder's files on the server; the folder's address."""
    for path in folder.iterdir():
        web.put(f"set/{path.name}", path.read_bytes())
    return web.put("set", None).removesuffix("/")


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "start"), [(0, None), (2, "fork"), (2, "forkserver")])
def test_the_stream_is_the_same_from_a_web_server(
    make_data: Callable[..., AudioDataModule], web: Any, drum_shards: Path, num_workers: int, start: str | None
) -> None:
    address = serve(web, drum_shards)
    local = contents(batches_of(make_data(str(drum_shards))))
    remote = batches_of(make_data(address, num_workers, worker_start=start))
    assert contents(remote) == local
    assert not any(batch.skipped for batch in remote)
    assert read_classes([address], RemoteStore(None)) == ["clap", "hat", "kick", "snare", "tom"]
    web.requests.clear()
    assert contents(batches_of(make_data(address))) == local  # a later run, on the same cache
    fetched = [path for _, path, asked in web.requests if asked and asked != "bytes=0-0" and "manifest" not in path]
    assert fetched == []


@pytest.mark.parametrize("sends_whole_files", [False, True])
def test_a_shard_replaced_by_another_of_the_same_size_is_not_served_from_the_cache(
    make_data: Callable[..., AudioDataModule],
    web: Any,
    fault: Any,
    tmp_path: Path,
    write_tar: Callable[..., Path],
    encode: Callable[..., bytes],
    noise: Callable[..., Any],
    sends_whole_files: bool,
) -> None:
    found = []
    for seed in (1, 2, 1):
        clips = [(f"{i}.wav", encode(noise(4000, seed=10 * seed + i), 16_000)) for i in range(3)]
        folder = tmp_path / f"{len(found)}"
        folder.mkdir()
        write_tar(folder / "s.tar", clips)
        local = contents(batches_of(make_data(str(folder / "s.tar"))))
        options = {"fault": fault.no_ranges} if sends_whole_files else {}
        url = web.put("other/s.tar", (folder / "s.tar").read_bytes(), **options)
        found.append(contents(batches_of(make_data(url))))
        assert found[-1] == local
    assert found[0] == found[2] != found[1]


def test_a_server_that_stumbles_changes_nothing_and_is_heard_of(
    make_data: Callable[..., AudioDataModule], web: Any, fault: SimpleNamespace, drum_shards: Path, caplog: Any
) -> None:
    address, faults = serve(web, drum_shards), [fault.status(500), fault.cut_off(False), fault.stall, fault.reset]
    for i, path in enumerate(sorted(drum_shards.glob("train-*"))):
        web.put(f"set/{path.name}", None, faults[i % len(faults)], times=1)
    with caplog.at_level(logging.WARNING):
        remote = batches_of(make_data(address))
    assert contents(remote) == contents(batches_of(make_data(str(drum_shards))))
    assert any("try 2 of 3" in message for message in caplog.messages)


def test_a_shard_that_fails_for_good_costs_its_own_clips_and_no_others(
    make_data: Callable[..., AudioDataModule], web: Any, fault: SimpleNamespace, drum_shards: Path
) -> None:
    address, data = serve(web, drum_shards), make_data(str(drum_shards))
    whole = batches_of(data)
    lost = set(data.train_shards["train"].index(0).keys)
    remote = make_data(address)
    remote.prepare_data()
    remote.setup()
    web.put(f"set/{Path(data.train_shards['train'].paths[0]).name}", None, fault.status(500))
    for got, expected in zip(remote.train_dataloader(), whole, strict=True):
        assert got.positions == expected.positions
        for i, key in enumerate(expected.keys):
            assert bool(got.valid[i]) == (key not in lost)
            assert key in lost or got.audio[i].equal(expected.audio[i])
        assert {skip.key for skip in got.skipped} == {key for key in got.keys if key in lost}
        assert {skip.kind for skip in got.skipped} <= {"remote"}
        assert all("500" in skip.reason for skip in got.skipped)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [("status 404", "404"), ("status 403", "403"), ("page", "HTML page"), ("short", r"expected \d+ bytes, got 1000")],
)
def test_shards_that_are_not_there_stop_a_run_before_it_starts(
    make_data: Callable[..., AudioDataModule],
    web: Any,
    fault: SimpleNamespace,
    drum_shards: Path,
    wrong: str,
    problem: str,
) -> None:
    address = serve(web, drum_shards)
    if wrong == "short":
        web.put("set/train-000001.tar", (drum_shards / "train-000001.tar").read_bytes()[:1000])
    else:
        web.put("set/train-000001.tar", None, fault.page if wrong == "page" else fault.status(int(wrong[-3:])))
    with pytest.raises(
        ValueError, match=rf"shards: 1 of \d+ differ from their manifest(.|\n)*train-000001.tar: .*{problem}"
    ):
        make_data(address).prepare_data()


def test_a_server_that_is_not_there_is_said_to_be(make_data: Callable[..., AudioDataModule], web: Any) -> None:
    web.put("set/manifest.json", b"", lambda handler, *_: handler.answer(500, b""))
    data = make_data(web.put("set", None))
    with pytest.raises(RemoteError, match=r"manifest.json: .*500"):
        data.prepare_data()


def test_shards_of_other_tools_are_indexed_on_first_sight_and_the_index_is_kept(
    make_data: Callable[..., AudioDataModule], web: Any, drum_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    for path in drum_shards.glob("*.tar"):
        shutil.copy(path, folder)
    address = serve(web, folder)
    names = sorted(path.name.removeprefix("train-").removesuffix(".tar") for path in folder.glob("train-*"))
    train = f"{address}/train-{{{names[0]}..{names[-1]}}}.tar"
    val = f"{address}/val-000000.tar"
    local = contents(batches_of(make_data(str(folder), val=str(folder / "val-000000.tar"))))
    assert contents(batches_of(make_data(train, val=val))) == local
    web.requests.clear()
    assert contents(batches_of(make_data(train, val=val))) == local
    assert [asked for _, path, asked in web.requests if path.endswith(".tar") and asked != "bytes=0-0"] == []


@pytest.fixture
def bucket(drum_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of an S3 server with the drum shards in s3://audio/set."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'audio_diffusion[dev]'")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'audio_diffusion[dev]'")
    import boto3

    monkeypatch.delenv("AWS_PROFILE", raising=False)
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    for name, value in {**keys, "aws_default_region": "us-east-1"}.items():
        monkeypatch.setenv(name.upper(), value)
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="audio")
    for path in drum_shards.iterdir():
        client.put_object(Bucket="audio", Key=f"set/{path.name}", Body=path.read_bytes())
    yield address
    server.stop()


@pytest.mark.slow
def test_the_stream_is_the_same_from_a_bucket(
    make_data: Callable[..., AudioDataModule], bucket: str, drum_shards: Path
) -> None:
    local = contents(batches_of(make_data(str(drum_shards))))
    assert contents(batches_of(make_data("s3://audio/set", 1, s3=bucket))) == local
    mixed = {"far": "s3://audio/set", "near": str(drum_shards)}
    batches = batches_of(make_data(mixed, s3=bucket))  # type: ignore[arg-type]
    assert {source for batch in batches for source in batch.sources} == {0, 1}
    assert not any(batch.skipped for batch in batches)
