"""Clips that cannot be used are named and counted, change nothing for the others, and stop a run if they are many."""

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from audio_diffusion.callbacks.diagnostics import Diagnostics
from audio_diffusion.callbacks.skipped import ReportSkipped
from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.faults import Skipped
from audio_diffusion.data.shards.index import load_index


class Batches(L.Callback):
    """Keeps the batches that were trained on and validated."""

    def __init__(self) -> None:
        self.trained: list[AudioBatch] = []
        self.validated: list[AudioBatch] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: AudioBatch, batch_idx: int) -> None:
        self.trained.append(batch)

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: AudioBatch, *args: Any) -> None:
        self.validated.append(batch)


def spoil(shards: Path, keys_per_shard: int, pattern: str = "train-*.tar") -> dict[str, str]:
    """Overwrites the audio of the first clips of each shard with text; key -> shard of the spoilt."""
    spoilt = {}
    for shard in sorted(shards.glob(pattern)):
        index = load_index(shard)
        for key, (offset, size) in list(zip(index.keys, index.audio, strict=True))[:keys_per_shard]:
            with open(shard, "r+b") as f:
                f.seek(offset)
                f.write(b"no audio " * (size // 9))
            spoilt[key] = str(shard)
    return spoilt


@pytest.fixture
def shards(drum_shards: Path, tmp_path: Path) -> Path:
    """A copy of the drum shards that a test may spoil."""
    return Path(shutil.copytree(drum_shards, tmp_path / "shards"))


def run_on(make_run: Callable[..., Any], shards: Path, **options: Any) -> Any:
    run = make_run(**options)
    run.data.train, run.data.val = {"train": str(shards)}, {"train": str(shards / "val-*.tar")}
    return run


def rows_of(path: Path) -> list[list[str]]:
    """shard, key, kind, reason of each clip named."""
    with open(path, newline="") as f:
        header, *rows = csv.reader(f)
    assert header == ["shard", "key", "kind", "reason"]
    return rows


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_bad_clips_are_named_once_and_counted_and_change_nothing_for_the_others(
    make_run: Callable[..., Any], drum_shards: Path, shards: Path, tmp_path: Path
) -> None:
    spoilt = spoil(shards, keys_per_shard=1)
    clean, seen = Batches(), Batches()
    run_on(make_run, drum_shards, max_steps=20, callbacks=[clean]).fit()
    report = ReportSkipped(str(tmp_path / "run"), max_fraction=0.5)
    run = run_on(make_run, shards, max_steps=20, callbacks=[report, seen])
    run.fit()

    bad = 0
    for batch, same in zip(seen.trained, clean.trained, strict=True):
        assert (batch.positions, batch.keys) == (same.positions, same.keys)
        unusable = torch.tensor([key in spoilt for key in batch.keys])
        assert torch.equal(batch.valid, ~unusable)
        assert not batch.audio[unusable].any()
        assert torch.equal(batch.audio[~unusable], same.audio[~unusable])
        assert torch.equal(batch.label[~unusable], same.label[~unusable])  # type: ignore[index]
        bad += int(unusable.sum())
    assert bad > len(spoilt)  # more than an epoch: some came twice
    assert (report.num_read, report.num_skipped) == (80, bad)

    rows = rows_of(tmp_path / "run" / "skipped.csv")
    assert {key: shard for shard, key, *_ in rows} == spoilt
    assert {kind for _, _, kind, _ in rows} == {"format"}
    assert len(rows) == len(spoilt)
    assert all(reason.startswith("cannot be decoded") for *_, reason in rows)
    counts = [row["data/skipped_clips"] for row in run.rows if "data/skipped_clips" in row]
    assert counts[-1] == bad
    assert [row["data/skipped_clips/format"] for row in run.rows if "data/skipped_clips/format" in row][-1] == bad
    assert [row["data/clips"] for row in run.rows if "data/clips" in row][-1] == 80
    assert counts == sorted(counts)


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_bad_held_out_clips_are_named_and_counted_too(
    make_run: Callable[..., Any], shards: Path, tmp_path: Path
) -> None:
    spoilt, seen = spoil(shards, 1, "val-*.tar"), Batches()
    report = ReportSkipped(str(tmp_path / "run"), max_fraction=1)
    run_on(make_run, shards, max_steps=2, val_every=1, callbacks=[report, seen]).fit()
    assert {key for _, key, *_ in rows_of(tmp_path / "run" / "skipped.csv")} == spoilt.keys()
    assert report.num_skipped == 2 * len(spoilt)
    assert report.num_read == sum(source >= 0 for batch in seen.trained + seen.validated for source in batch.sources)


def test_a_clean_run_reports_nothing(make_run: Callable[..., Any], drum_shards: Path, tmp_path: Path) -> None:
    run = run_on(make_run, drum_shards, callbacks=[ReportSkipped(str(tmp_path / "run"))])
    run.fit()
    assert not (tmp_path / "run").exists()
    assert not any(row.get("data/skipped_clips") for row in run.rows)


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_above_the_limit_the_run_stops_and_says_why(make_run: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    spoil(shards, keys_per_shard=100)
    report = ReportSkipped(str(tmp_path / "run"), max_fraction=0.25, min_clips=12)
    run = run_on(make_run, shards, max_steps=20, callbacks=[report])
    problem = (
        r"data: 12 of 12 clips read could not be used, more than callbacks\.skipped\.max_fraction = 0\.25 allows\. "
        r"The latest: .*train-.*cannot be decoded.*All are listed in .*run/skipped\.csv; repair or remove them"
    )
    with pytest.raises(ValueError, match=problem):
        run.fit()
    assert run.trainer.global_step == 3  # not before min_clips were read
    assert len(rows_of(tmp_path / "run" / "skipped.csv")) == 12


@pytest.mark.filterwarnings("ignore:skipped clip")
@pytest.mark.parametrize(("num_skipped", "stops"), [(2, False), (3, True)])
def test_the_limit_is_the_fraction_of_all_clips_read(
    make_run: Callable[..., Any], shards: Path, tmp_path: Path, num_skipped: int, stops: bool
) -> None:
    """20 clips, at most 10 %: two bad ones are within the limit, a third is not."""
    clean = Batches()
    run_on(make_run, shards, max_steps=5, callbacks=[clean]).fit()
    last = [key for batch in clean.trained[2:] for key in batch.keys][-num_skipped:]
    for shard in shards.glob("train-*.tar"):
        index = load_index(shard)
        for key, (offset, _) in zip(index.keys, index.audio, strict=True):
            if key in last:
                with open(shard, "r+b") as f:
                    f.seek(offset)
                    f.write(bytes(100))
    run = run_on(
        make_run, shards, max_steps=5, callbacks=[ReportSkipped(str(tmp_path / "run"), max_fraction=0.1, min_clips=1)]
    )
    if stops:
        with pytest.raises(ValueError, match="data: 3 of 20 clips read could not be used"):
            run.fit()
    else:
        run.fit()
        assert run.trainer.global_step == 5


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_what_the_indexes_refuse_is_named_at_the_start(
    make_run: Callable[..., Any], shards: Path, tmp_path: Path
) -> None:
    first = sorted(shards.glob("train-*.tar"))[0]
    first.write_bytes(first.read_bytes()[:60_000])  # cut in the middle of its fourth clip
    (shards / "manifest.json").unlink()  # which would have the run refused
    report = ReportSkipped(str(tmp_path / "run"), max_fraction=0.5)
    run = run_on(make_run, shards, max_steps=1, callbacks=[report])
    run.fit()
    rows = rows_of(tmp_path / "run" / "skipped.csv")
    assert {shard for shard, *_ in rows} == {str(first)}
    assert any("cannot be read to its end" in reason for *_, reason in rows)
    assert report.num_skipped == len(rows)
    with pytest.raises(ValueError, match=rf"data: {len(rows)} of {len(rows) + run.data.num_clips()} clips read could"):
        run_on(make_run, shards, max_steps=1, callbacks=[ReportSkipped(str(tmp_path / "2"), max_fraction=0.01)]).fit()


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_a_resumed_run_names_none_twice(make_run: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    spoilt = spoil(shards, keys_per_shard=1)
    for _ in range(2):
        run_on(make_run, shards, max_steps=20, callbacks=[ReportSkipped(str(tmp_path / "run"), 1)]).fit()
        assert {key for _, key, *_ in rows_of(tmp_path / "run" / "skipped.csv")} == spoilt.keys()
        assert len(rows_of(tmp_path / "run" / "skipped.csv")) == len(spoilt)


def test_the_first_of_them_are_warned_about(make_run: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    spoilt = spoil(shards, keys_per_shard=100)
    run = run_on(make_run, shards, max_steps=1, callbacks=[ReportSkipped(str(tmp_path / "run"))])
    with (
        pytest.warns(
            UserWarning, match=r"skipped clip \w+ of .*train-.*\.tar: cannot be decoded.*skipped\.csv"
        ) as caught,
        pytest.raises(ValueError, match="data: none of the 4 clips read so far can be trained on"),
    ):
        run.fit()
    named = [str(warning.message) for warning in caught if "skipped clip" in str(warning.message)]
    assert len(named) == 3  # of a batch of four
    assert all(message.split()[2] in spoilt for message in named)


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_a_condition_that_no_clip_has_stops_the_run(make_run: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    run = run_on(make_run, shards, max_steps=50, val_every=1, callbacks=[ReportSkipped(str(tmp_path / "run"), 0.5)])
    run.data.reading = replace(run.data.reading, fields=("caption",))
    with pytest.raises(
        ValueError, match=r"none of the \d+ clips read so far can be trained on \(\d+ × json or fields.*caption"
    ):
        run.fit()
    assert run.trainer.global_step <= 8


@pytest.mark.filterwarnings("ignore:skipped clip")
def test_a_validation_without_clips_has_no_loss(make_run: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    spoil(shards, 100, "val-*.tar")
    run = run_on(make_run, shards, val_every=1, callbacks=[Diagnostics(), ReportSkipped(str(tmp_path / "run"), 1)])
    with pytest.warns(UserWarning, match="none of the held-out clips could be used, so there is no val/loss"):
        run.fit()
    assert not any("val/loss" in row or "val/loss_ema" in row for row in run.rows)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fractions_outside_0_to_1_are_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"max_fraction: expected 0 to 1, got {fraction}"):
        ReportSkipped(str(tmp_path), max_fraction=fraction)


def test_the_names_are_sent_as_a_table_when_there_are_new_ones(
    make_run: Callable[..., Any], shards: Path, tmp_path: Path
) -> None:
    spoilt = spoil(shards, keys_per_shard=100)
    report = ReportSkipped(str(tmp_path / "run"), max_fraction=1)
    run = run_on(make_run, shards, max_steps=2, val_every=1, callbacks=[report])
    board = TensorBoardLogger(tmp_path / "board")
    run.trainer.loggers = [*run.trainer.loggers, board]
    with pytest.warns(UserWarning, match="skipped clip"):
        run.fit()
    board.save()
    events = EventAccumulator(board.log_dir)
    events.Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("data/skipped/text_summary")]
    assert len(texts) == 2  # after each of two validations; none after the fit, as nothing is new
    rows = rows_of(tmp_path / "run" / "skipped.csv")
    assert texts[-1].splitlines()[2:] == [" | ".join(row) for row in rows]
    assert len(rows) == 8
    assert all(row[1] in spoilt for row in rows)


def test_a_skipped_clip_is_told_in_words() -> None:
    skip = Skipped("a/train-000000.tar", "dog", "truncated", "ends too early")
    assert f"The latest: {skip}" == "The latest: clip 'dog' of a/train-000000.tar: ends too early"
