"""Under a real Trainer: the batches are the stream's, whatever reads them, and a resumed run goes on exactly."""

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from audio_diffusion.data import shared_memory
from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.data.order import ClipOrder, Mixture, StreamOrder
from audio_diffusion.data.shards.index import index_path, load_index
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import ClipReader, Reading
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.data.transforms import Augment
from audio_diffusion.packing.pack import pack, scan_folder

CLASSES = ["clap", "hat", "kick", "snare", "tom"]


class Recorder(L.LightningModule):
    """Keeps the batches it is given: (optimizer steps done, batch)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[int, AudioBatch]] = []
        self.numbers: list[int] = []  # of the batches, as Lightning counts them
        self.validated: list[AudioBatch] = []

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        self.numbers.append(batch_idx)
        self.trained.append((self.global_step, batch))
        return self.weight * batch.audio.mean()

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Save(L.Callback):
    """Saves once so many batches are trained, in the hook where checkpoints are saved, and stops there."""

    def __init__(self, path: Path, after: int):
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.after -= 1
        if self.after == 0:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def make_trainer(
    max_steps: int, accumulate: int = 1, callbacks: tuple[L.Callback, ...] = (), **options: Any
) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=1, max_steps=max_steps, accumulate_grad_batches=accumulate,
        callbacks=list(callbacks), check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


@pytest.fixture
def make_data(drum_shards: Path) -> Callable[..., AudioDataModule]:
    """make_data(max_steps, batch_size=6, num_workers=0, ...) -> a DataModule of the drum hits."""

    def made(max_steps: int, batch_size: int = 6, num_workers: int = 0, **options: Any) -> AudioDataModule:
        options = {"train": str(drum_shards), "val": None, "classes": CLASSES, "seed": 3, "shuffle_block": 16} | options
        order, reading = (
            kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})
            for kind in (StreamOrder, Reading)
        )
        return AudioDataModule(
            crop=CropFormat(16_000, 1, 2048), batch_size=batch_size, max_steps=max_steps, order=order, reading=reading,
            num_workers=num_workers, **options,
        )  # fmt: skip

    return made


def fit(
    data: AudioDataModule, *, accumulate: int = 1, ckpt: Path | None = None, save: Save | None = None, **options: Any
) -> Recorder:
    recorder = Recorder()
    trainer = make_trainer(data.max_steps, accumulate, (save,) if save else (), **options)
    trainer.fit(recorder, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return recorder


def clips_of(batches: list[AudioBatch]) -> list[tuple[int, str, int, bytes]]:
    """(position, key, label, samples) of each clip, in the order of the batches."""
    return [
        (batch.positions[i], batch.keys[i], int(batch.label[i]), batch.audio[i].numpy().tobytes())
        for batch in batches
        if batch.label is not None
        for i in range(len(batch))
    ]


def trained(*recorders: Recorder) -> list[tuple[int, str, int, bytes]]:
    """What was trained on, by position: inside a batch clips come in the order of their shards."""
    return sorted(clips_of([batch for recorder in recorders for _, batch in recorder.trained]))


def expected(drum_shards: Path, positions: range) -> list[tuple[int, str, int, bytes]]:
    """What the stream says lies at these positions."""
    shards = Shards.open([str(drum_shards)])
    mixture = Mixture([ClipOrder(shards.num_clips, 3, 16)], [1], 3)
    reader = ClipReader([shards], mixture, 16_000, Reading(CLASSES), 3)
    found = []
    for position in positions:
        audio = torch.empty(1, 2048)
        clip = reader(position, audio)
        found.append((position, clip.key, clip.label, audio.numpy().tobytes()))
    return found


@pytest.mark.parametrize(("num_workers", "accumulate"), [(0, 1), (2, 1), (0, 3), (2, 3)])
def test_training_gets_the_stream_in_order_for_exactly_the_steps_asked(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, num_workers: int, accumulate: int
) -> None:
    recorder = fit(make_data(9, num_workers=num_workers), accumulate=accumulate)
    assert recorder.global_step == 9
    assert trained(recorder) == expected(drum_shards, range(54))  # more than an epoch
    assert [step for step, _ in recorder.trained] == [k // accumulate for k in range(9 * accumulate)]
    for step, batch in recorder.trained:
        assert set(batch.positions) <= set(range(6 * step, 6 * step + 6))
        assert batch.audio.shape == (6 // accumulate, 1, 2048)
        assert batch.valid.all()
        assert batch.skipped == ()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory is shared this way on Linux alone")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_crops_are_written_once_where_training_reads_them(
    make_data: Callable[..., AudioDataModule], num_workers: int
) -> None:
    before = set(shared_memory._opened)
    recorder = fit(make_data(3, num_workers=num_workers))  # it keeps them all
    memory = [slots._memory for id, slots in shared_memory._opened.items() if id not in before]
    assert len(recorder.trained) == 3
    for _, batch in recorder.trained:
        assert sum(np.shares_memory(batch.audio.numpy(), shared) for shared in memory) == 1


RESUMES = {
    # batches trained before the kill, then (batch size, accumulation, workers) before and after it
    "before the half": (3, (6, 1, 0), (6, 1, 0)),
    "after the half": (7, (6, 1, 0), (6, 1, 2)),
    "at the first step": (1, (6, 1, 2), (6, 1, 0)),
    "at the last but one": (8, (6, 1, 0), (6, 1, 0)),
    "accumulating": (6, (6, 2, 0), (6, 2, 2)),
    "more accumulation": (4, (6, 1, 0), (6, 3, 0)),
    "less accumulation": (12, (6, 3, 0), (6, 1, 0)),
    "other accumulation": (4, (6, 2, 0), (6, 3, 0)),
    "larger batches": (5, (6, 1, 0), (8, 1, 0)),
    "smaller batches, accumulated": (5, (6, 1, 0), (4, 2, 0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMES)
def test_a_resumed_run_goes_on_with_exactly_the_next_clips(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, tmp_path: Path, case: str
) -> None:
    num_batches, (size, accumulate, workers), (size_after, accumulate_after, workers_after) = RESUMES[case]
    stop = num_batches // accumulate
    ckpt = tmp_path / "c.ckpt"
    before = fit(make_data(9, size, workers), accumulate=accumulate, save=Save(ckpt, num_batches))
    after = fit(make_data(9, size_after, workers_after), accumulate=accumulate_after, ckpt=ckpt)
    assert before.global_step == stop
    assert after.global_step == 9
    assert trained(before, after) == expected(drum_shards, range(stop * size + (9 - stop) * size_after))
    steps = [step for step, _ in after.trained]
    assert steps == [step for step in range(stop, 9) for _ in range(accumulate_after)]


def test_a_run_killed_in_the_middle_of_a_step_repeats_that_step(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, tmp_path: Path
) -> None:
    ckpt = tmp_path / "c.ckpt"
    before = fit(make_data(4), accumulate=3, save=Save(ckpt, after=5))
    assert before.global_step == 1
    after = fit(make_data(4), accumulate=3, ckpt=ckpt)
    assert trained(after) == expected(drum_shards, range(6, 24))
    assert [step for step, _ in after.trained] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_resuming_twice(make_data: Callable[..., AudioDataModule], drum_shards: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    parts = [
        fit(make_data(9), save=Save(first, 2)),
        fit(make_data(9), accumulate=2, ckpt=first, save=Save(second, 4)),
        fit(make_data(9), accumulate=3, ckpt=second),
    ]
    assert [part.global_step for part in parts] == [2, 4, 9]
    assert trained(*parts) == expected(drum_shards, range(54))


@pytest.mark.parametrize("in_hook", [True, False])
def test_a_finished_run_goes_on_to_more_steps(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, tmp_path: Path, in_hook: bool
) -> None:
    ckpt, recorder = tmp_path / "c.ckpt", Recorder()
    trainer = make_trainer(4, callbacks=(Save(ckpt, 4),) if in_hook else ())
    trainer.fit(recorder, datamodule=make_data(4))
    if not in_hook:
        trainer.save_checkpoint(ckpt)
    for max_steps in (7, 12):
        more = fit(make_data(max_steps), ckpt=ckpt)
        assert more.global_step == max_steps
        assert more.numbers == list(range(4, max_steps))
        epochs = more.trainer.fit_loop.epoch_progress.current
        assert epochs.ready == epochs.processed
        assert trained(recorder, more) == expected(drum_shards, range(max_steps * 6))
    for max_steps in (4, 2):  # nothing is left to do
        assert fit(make_data(max_steps), ckpt=ckpt).trained == []


def test_the_checkpoint_holds_the_position_as_plain_data(
    make_data: Callable[..., AudioDataModule], tmp_path: Path
) -> None:
    fit(make_data(5), accumulate=2, save=Save(tmp_path / "c.ckpt", 6))
    checkpoint = torch.load(tmp_path / "c.ckpt", weights_only=True)
    state = checkpoint["AudioDataModule"]
    assert (state["position"], state["step"]) == (18, 3)
    assert state.keys() == {"position", "step", "order"}


@pytest.mark.parametrize(
    ("change", "warned"),
    [({}, False), ({"seed": 4}, True), ({"crops_per_clip": 2}, True), ({"shuffle_block": 17}, True)],
)
def test_resuming_on_another_order_is_warned_of(
    make_data: Callable[..., AudioDataModule], tmp_path: Path, change: dict[str, Any], warned: bool
) -> None:
    ckpt = tmp_path / "c.ckpt"
    fit(make_data(3), save=Save(ckpt, 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make_data(3, **change), ckpt=ckpt)
    messages = [str(warning.message) for warning in caught]
    assert any("continues at position 12 of the new order" in message for message in messages) == warned


@pytest.mark.slow
def test_crops_are_augmented_alike_by_any_workers_and_held_out_clips_never(
    make_data: Callable[..., AudioDataModule],
) -> None:
    augment = Augment((-12, 0), invert=True)
    plain, changed = fit(make_data(8)), fit(make_data(8, augment=augment))
    other = fit(make_data(8, num_workers=2, augment=augment))
    assert trained(other) == trained(changed)
    for (_, before), (_, after) in zip(plain.trained, changed.trained, strict=True):
        ratio = (after.audio.square().mean((1, 2)) / before.audio.square().mean((1, 2))).sqrt()
        assert (ratio <= 1).all()
        assert len(set(ratio.tolist())) == len(ratio)
    assert clips_of(changed.validated) == clips_of(plain.validated)


def test_lightning_counts_a_resumed_run_from_where_it_was(
    make_data: Callable[..., AudioDataModule], tmp_path: Path
) -> None:
    """Its progress bar and its batch numbers go on, and validation keeps its rhythm."""

    class Numbers(L.Callback):
        def __init__(self) -> None:
            self.batches: list[int] = []
            self.validations: list[int] = []

        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            self.batches.append(batch_idx)
            assert trainer.num_training_batches == 9

        def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
            self.validations.append(trainer.global_step)

    fit(make_data(9), save=Save(tmp_path / "c.ckpt", 4), limit_val_batches=0)
    numbers = Numbers()
    trainer = make_trainer(9, callbacks=(numbers,), val_check_interval=3)
    trainer.fit(Recorder(), datamodule=make_data(9), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert numbers.batches == [4, 5, 6, 7, 8]
    assert numbers.validations == [6, 9]


# --- validation


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 0), (7, 2), (100, 0)])
def test_validation_covers_each_held_out_clip_once_and_fills_up_with_empty_slots(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, batch_size: int, num_workers: int
) -> None:
    recorder = fit(make_data(2, batch_size, num_workers), val_check_interval=1)
    indexes = [load_index(path) for path in sorted(drum_shards.glob("val-*.tar"))]
    keys = [key for index in indexes for key in index.keys]
    half = len(recorder.validated) // 2
    for batches in (recorder.validated[:half], recorder.validated[half:]):  # after each of the two steps
        assert len(batches) == -(-len(keys) // batch_size)
        assert all(len(batch) == batch_size for batch in batches)
        slots = clips_of(batches)
        assert [key for _, key, _, _ in slots] == keys + [""] * (len(slots) - len(keys))
        assert [position for position, *_ in slots] == list(range(len(slots)))
        valid = torch.cat([batch.valid for batch in batches]).tolist()
        assert valid == [True] * len(keys) + [False] * (len(slots) - len(keys))
        assert all(not any(samples) for *_, samples in slots[len(keys) :])
        assert all(CLASSES[label] == key.split("_")[0] for _, key, label, _ in slots[: len(keys)])
        assert all(batch.skipped == () for batch in batches)
    assert clips_of(recorder.validated[:half]) == clips_of(recorder.validated[half:])


def test_validation_hears_the_start_of_each_clip(make_data: Callable[..., AudioDataModule]) -> None:
    data, whole = make_data(1, 4), make_data(1, 4)
    whole.num_samples = 8192
    crops, wholes = (fit(each).validated for each in (data, whole))
    assert len(crops) == len(wholes) > 1
    for crop, clip in zip(crops, wholes, strict=True):
        assert torch.equal(crop.audio, clip.audio[:, :, :2048])


# --- ranks


@pytest.fixture
def as_rank(
    make_data: Callable[..., AudioDataModule], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AudioDataModule]:
    """as_rank(rank, world_size, ...) -> a DataModule that is set up as on that rank of a larger run."""

    def made(
        rank: int, world_size: int, accumulate: int = 1, state: dict | None = None, **options: Any
    ) -> AudioDataModule:
        data = make_data(6, 12, **options)
        data.trainer = make_trainer(6, accumulate)
        monkeypatch.setattr(L.Trainer, "world_size", property(lambda trainer: world_size))
        monkeypatch.setattr(L.Trainer, "global_rank", property(lambda trainer: rank))
        data.setup()
        if state:
            data.load_state_dict({**state, "order": data.mixture.fingerprint()})
        return data

    return made


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 3), (3, 2)])
@pytest.mark.parametrize("step", [0, 2])
def test_all_ranks_together_read_the_stream(
    as_rank: Callable[..., AudioDataModule], drum_shards: Path, world_size: int, accumulate: int, step: int
) -> None:
    state = {"position": 12 * step, "step": step}
    ranks = [list(as_rank(rank, world_size, accumulate, state).train_dataloader()) for rank in range(world_size)]
    in_order = [batch for parts in zip(*ranks, strict=True) for batch in parts]
    for k in range(step, 6):  # each step's global batch, whatever it is split into
        batches = in_order[(k - step) * world_size * accumulate :][: world_size * accumulate]
        assert sorted(clips_of(batches)) == expected(drum_shards, range(12 * k, 12 * k + 12))
    assert {len(batch) for batch in in_order} == {12 // (world_size * accumulate)}


def test_all_ranks_together_validate_each_clip_once_in_as_many_batches(as_rank: Callable[..., AudioDataModule]) -> None:
    [alone] = [list(as_rank(0, 1).val_dataloader())]
    ranks = [list(as_rank(rank, 3).val_dataloader()) for rank in range(3)]
    in_order = [batch for parts in zip(*ranks, strict=True) for batch in parts]
    assert clips_of(in_order) == clips_of(alone)


def test_fewer_clips_than_ranks_are_dealt_in_equal_batches(
    as_rank: Callable[..., AudioDataModule], two_clips: Path
) -> None:
    """One clip to train on, one held out, four ranks: a pass ends within every batch."""
    training, validation = [], []
    for rank in range(4):
        data = as_rank(rank, 4, train=str(two_clips))
        training.append([batch.keys for batch in data.train_dataloader()])
        validation.append([(len(batch), int(batch.valid.sum())) for batch in data.val_dataloader()])
    assert [[len(keys) for keys in batches] for batches in training] == [[3] * 6] * 4
    assert len({key for batches in training for keys in batches for key in keys}) == 1
    assert validation == [[(3, 1)], [(3, 0)], [(3, 0)], [(3, 0)]]


@pytest.mark.parametrize(
    ("world_size", "accumulate", "nearest"), [(5, 1, "10 or 15"), (2, 4, "8 or 16"), (8, 2, "16"), (1, 5, "10 or 15")]
)
def test_a_batch_size_that_cannot_be_divided_is_refused_and_the_nearest_are_named(
    as_rank: Callable[..., AudioDataModule], world_size: int, accumulate: int, nearest: str
) -> None:
    devices = f"{world_size} device{'s' * (world_size > 1)}"
    problem = (
        f"batch_size: expected a multiple of {world_size * accumulate} \\(1 node × {devices} × {accumulate} "
        f"accumulated\\), got 12; nearest valid: {nearest}$"
    )
    data = as_rank(0, world_size, accumulate)
    with pytest.raises(ValueError, match=problem):
        data.train_dataloader()
    with pytest.raises(ValueError, match=problem):
        data.val_dataloader()


# --- what it is made from


@pytest.mark.parametrize("name", ["sample_rate", "channels", "num_samples", "batch_size", "max_steps", "shuffle_block"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes = {"sample_rate": 1, "channels": 1, "num_samples": 1, "batch_size": 1, "max_steps": 1, "shuffle_block": 1}

    def make(
        sample_rate: int, channels: int, num_samples: int, batch_size: int, max_steps: int, shuffle_block: int
    ) -> AudioDataModule:
        crop, order = CropFormat(sample_rate, channels, num_samples), StreamOrder(shuffle_block=shuffle_block)
        return AudioDataModule("train", None, crop, batch_size, max_steps, order)

    make(**sizes)
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        make(**(sizes | {name: 0}))


def test_missing_shards_are_refused_at_setup(make_data: Callable[..., AudioDataModule], drum_shards: Path) -> None:
    with pytest.raises(ValueError, match="shards: expected files at 'nowhere'"):
        make_data(1, train="nowhere").setup()
    with pytest.raises(ValueError, match="shards: expected files at 'nowhere'"):
        make_data(1, val="nowhere").setup()


def test_data_is_described_in_plain_values(make_data: Callable[..., AudioDataModule], drum_shards: Path) -> None:
    data = make_data(1)
    data.setup()
    train, val = data.describe()["train"], data.describe()["val"]
    assert train["clips"] + val["clips"] == 40
    assert (train["shards"], val["shards"]) == tuple(
        len(list(drum_shards.glob(f"{s}-*.tar"))) for s in ("train", "val")
    )
    assert train["bytes"] == sum(path.stat().st_size for path in drum_shards.glob("train-*.tar"))
    assert (train["pattern"], val["pattern"]) == (str(drum_shards), str(drum_shards / "val-*.tar"))
    assert data.refused() == []


def test_shards_of_other_tools_work_and_say_what_is_wrong_with_them(
    make_data: Callable[..., AudioDataModule],
    tmp_path: Path,
    write_tar: Callable[..., Path],
    encode: Callable[..., bytes],
    noise: Callable[..., Any],
) -> None:
    clip = encode(noise(4000, 2), 44_100, "FLAC")
    train = write_tar(tmp_path / "a.tar", [(f"{i}.flac", clip) for i in range(3)] + [("../x.flac", clip)])
    val = write_tar(tmp_path / "b.tar", [("0.flac", clip), ("0.json", b"{}"), ("0.flac", clip)])
    data = make_data(2, 4, train=str(train), val=str(val), classes=[])
    recorder = fit(data)
    assert [skip[:3] for skip in data.refused()] == [
        (str(train), "../x.flac", "unsafe"),
        (str(val), "0.flac", "duplicate"),
    ]
    assert Path(index_path(train)).is_file()
    batches = [batch for _, batch in recorder.trained]
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys[:3]) == sorted(keys[3:6]) == ["0", "1", "2"]
    for batch in batches:
        assert batch.label is None
        assert batch.cond.keys() == {"seconds_start", "seconds_total"}
        assert batch.audio.any(-1).all()
        assert batch.mask.sum(-1).flatten().tolist() == [1452] * 4  # 4000 samples at 44.1 kHz, at 16 kHz


# --- several data sets, several crops, other workers


@pytest.fixture
def two_sets(drum_shards: Path) -> dict[str, str]:
    """Two data sets that share no clip: the first and the other training shards."""
    first, *others = sorted(str(path) for path in drum_shards.glob("train-*.tar"))
    return {"first": first, "others": "{" + ",".join(others) + "}" if len(others) > 1 else others[0]}


def test_a_mixture_has_the_weights_asked_for_and_resumes_exactly_on_other_workers(
    make_data: Callable[..., AudioDataModule], two_sets: dict[str, str], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"train": two_sets, "weights": {"first": 3, "others": 1}, "crops_per_clip": 2}
    whole = fit(make_data(9, **options))
    first = {key for key in Shards.open([two_sets["first"]]).index(0).keys}
    sources = [source for _, batch in whole.trained for source in batch.sources]
    keys = [key for _, batch in whole.trained for key in batch.keys]
    assert {source == 0 for source, key in zip(sources, keys, strict=True) if key in first} == {True}
    assert 0.6 < sources.count(0) / 54 < 0.9
    ckpt = tmp_path / "c.ckpt"
    before = fit(make_data(9, **options), save=Save(ckpt, 4))
    after = fit(make_data(9, num_workers=2, worker_start="forkserver", **options), ckpt=ckpt)
    assert trained(before, after) == trained(whole)


def test_each_data_sets_order_is_its_own_whatever_it_is_mixed_with(
    make_data: Callable[..., AudioDataModule], two_sets: dict[str, str], drum_shards: Path
) -> None:
    def order(sets: dict[str, str], name: str) -> list[tuple[int, int, int]]:
        data = make_data(1, train=sets)
        data.setup()
        return [data.mixture.orders[list(sets).index(name)].locate(position) for position in range(50)]

    three = {**two_sets, "third": str(drum_shards)}
    assert order(three, "first") == order(two_sets, "first")
    assert order({"third": str(drum_shards), **two_sets}, "others") == order(two_sets, "others")


def test_several_crops_of_each_clip_make_an_epoch(make_data: Callable[..., AudioDataModule]) -> None:
    data = make_data(4, 30, crops_per_clip=3)
    recorder = fit(data)
    num_clips = sum(shards.num_clips.sum() for shards in data.train_shards.values())
    batches = [batch for _, batch in recorder.trained]
    seen = {
        position: (key, float(at))
        for batch in batches
        for position, key, at in zip(batch.positions, batch.keys, batch.seconds_start, strict=True)
    }
    in_epoch = [seen[position] for position in range(3 * num_clips)]
    assert len(set(in_epoch)) == len(in_epoch)
    assert set(Counter(key for key, _ in in_epoch).values()) == {3}
    for batch in batches:
        assert (batch.seconds_start + 2048 / 16_000 <= batch.seconds_total + 1e-6).all()


def test_shards_that_are_not_the_manifests_stop_a_run_before_it_starts(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(drum_shards, tmp_path / "shards"))
    (shard := next(shards.glob("val-*.tar"))).write_bytes(b"<html>Not found</html>")
    with pytest.raises(ValueError, match=rf"{shard}: expected \d+ bytes, got 22 of an HTML page"):
        fit(make_data(1, train=str(shards)))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weights": {"second": 1}}, "weights: expected one for each of train, got second"),
        ({"weights": {"train": 0}}, "weights: expected 1 positive numbers"),
        ({"temperature": 0.5}, "temperature: expected 1 or more"),
        ({"crops_per_clip": 0}, "crops_per_clip: expected at least 1, got 0"),
        ({"worker_start": "thread"}, "worker_start: expected fork, forkserver or spawn, got 'thread'"),
    ],
)
def test_impossible_options_are_refused(
    make_data: Callable[..., AudioDataModule], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        make_data(1, **options).setup()


def test_the_first_held_out_clips_are_those_of_validation_and_come_round(make_data) -> None:
    data = make_data(1)
    validated = clips_of(fit(data).validated)
    num_clips = int(data.val_shards.num_clips.sum())
    held_out = clips_of([data.held_out(num_clips + 2)])
    assert held_out[:num_clips] == validated[:num_clips]
    assert held_out[num_clips:] == held_out[:2]


# --- nothing is held out


@pytest.fixture
def all_for_training(drum_folder: Path, tmp_path: Path) -> Path:
    """The drum hits as shards, with none held out."""
    pack(scan_folder(drum_folder, True), tmp_path / "all", val_fraction=0)
    return tmp_path / "all"


@pytest.mark.parametrize("is_foreign", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_held_out_shards_training_goes_without_validation(
    make_data: Callable[..., AudioDataModule], all_for_training: Path, is_foreign: bool, num_workers: int
) -> None:
    if is_foreign:
        (all_for_training / "manifest.json").unlink()
    data = make_data(3, train=str(all_for_training), num_workers=num_workers)
    recorder = fit(data, val_check_interval=1)
    assert len(recorder.trained) == 3
    assert recorder.validated == []
    assert data.num_clips() == 40
    assert data.describe().keys() == {"train"}
    assert data.refused() == []


def test_without_held_out_shards_conditions_come_from_training_clips(
    make_data: Callable[..., AudioDataModule], all_for_training: Path
) -> None:
    data = make_data(1, train=str(all_for_training))
    data.setup()
    batch = data.held_out(50)
    keys = load_index(all_for_training / "train-000000.tar").keys
    assert list(batch.keys) == [*keys, *keys[:10]]
    assert batch.valid.all()


def test_held_out_shards_that_the_manifest_lists_must_be_there(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(drum_shards, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("val-*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"shards: expected files at '.*val-\*.tar', but '.*' does not exist"):
        make_data(1, train=str(tmp_path / "copy")).prepare_data()


def test_of_several_data_sets_one_may_hold_out_nothing(
    make_data: Callable[..., AudioDataModule], drum_shards: Path, all_for_training: Path
) -> None:
    data = make_data(1, train={"held": str(drum_shards), "all": str(all_for_training)})
    data.setup()
    assert data.val_shards is not None
    assert all(Path(path).parent == drum_shards for path in data.val_shards.paths)
