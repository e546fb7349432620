"""Packs audio files into WebDataset shards with indexes, a manifest, a list of refused files and a picture. The steps
are in the other modules of this folder."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.wording import counted
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.packing.copies import describe, find_copies
from audio_diffusion.packing.form import Form, Task, cut_of, tasks
from audio_diffusion.packing.holdout import FEW, HeldOut, cutting, hold_out, parts_of
from audio_diffusion.packing.journal import Journal, Plan
from audio_diffusion.packing.labels import Labels
from audio_diffusion.packing.manifests import scan_manifest
from audio_diffusion.packing.parallel import ordered
from audio_diffusion.packing.prepare import Clip, Drop, look, prepare
from audio_diffusion.packing.report import PICTURE, REFUSED, PackReport, write_refused, write_report
from audio_diffusion.packing.shard_writer import ShardWriter, bytes_needed, told_when_full
from audio_diffusion.packing.sources import Source, scan_folder, split_of
from audio_diffusion.packing.statistics import Tally

__all__ = ["PICTURE", "REFUSED", "PackReport", "Source", "pack", "scan_folder", "scan_manifest", "split_of"]

Progress = Callable[[str, int, int, float, float], None]  # stage, files done, files, seconds done, seconds


def pack(
    sources: list[Source],
    output: Path,
    *,
    form: Form | None = None,
    val_fraction: float = 0.1,
    shard_bytes: int = 100_000_000,
    num_workers: int = 1,
    store: RemoteStore | None = None,
    picture: bool = False,
    progress: Progress = lambda *counts: None,
) -> PackReport:
    """Decodes every file completely, and writes shards, indexes, ``manifest.json``, ``refused.csv`` and
    ``manifest.png``.

    The same input results in the same bytes. Clips are ordered by a hash of their sources' names, so that every shard
    is a mixture. An interrupted run continues when its command is repeated. Files with final names are complete at any
    time; the manifest is written last.

    Args:
        sources: files to pack.
        output: folder for the shards; it must be empty, or contain an unfinished run with the same options.
        form: conversion of the files; None keeps them unchanged.
        val_fraction: fraction to hold out, by hash of the name, of files without a given split; see ``holdout`` for
            small data sets. Copies of a file stay in one split. 0 holds out nothing.
        shard_bytes: size at which a shard is closed.
        num_workers: number of decoding processes.
        store: access to sources that are URLs.
        picture: whether to draw durations, levels and classes.
        progress: called with stage, files done, files, seconds done and seconds.

    Raises:
        ValueError: if the output contains other shards, a number is out of range, or no clip is left to train on.
    """
    form = form or Form()
    _check_numbers(val_fraction, shard_bytes=shard_bytes, num_workers=num_workers)
    sources = sorted(sources, key=lambda source: source.digest)
    options = {**asdict(form), "val_fraction": val_fraction, "shard_bytes": shard_bytes}

    def needed() -> int:
        done = sum(entry["shard"]["bytes"] for entry in journal.entries)
        return max(bytes_needed(sources, journal.plan or [""] * len(sources), form) - done, 0)

    with Journal(output, sources, options) as journal, told_when_full(output, needed):
        resumed = len(journal.entries)
        if journal.plan is None:
            plan, copies = _plan(sources, form, val_fraction, store, num_workers, progress)
            held_out = hold_out(sources, plan, val_fraction, copies)
            usable = [split for split, item in zip(held_out.splits, plan, strict=True) if isinstance(item, AudioInfo)]
            refused = [(source.name, item) for source, item in zip(sources, plan, strict=True) if isinstance(item, str)]
            _check_any_to_train_on(usable, refused, len(plan), output)
            journal.begin(plan, copies)
        run = _Run(journal, sources, form, val_fraction, store, progress)
        tallies = {split: run.pack_split(split, output, shard_bytes, num_workers) for split in ("train", "val", "test")}
        report = _report(run, tallies, options, resumed)
        packed = [split for split, tally in tallies.items() if tally.clips]
        _check_any_to_train_on(packed, report.refused, len(sources), output)
        write_report(report, run.rests(), output, picture)
        journal.finish()
    return report


def _check_numbers(val_fraction: float, **counts: int) -> None:
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"val_fraction: expected at least 0, which holds out nothing, and less than 1, got {val_fraction}"
        )
    check_at_least_one(**counts)


def _plan(
    sources: list[Source],
    form: Form,
    val_fraction: float,
    store: RemoteStore | None,
    num_workers: int,
    progress: Progress,
) -> tuple[Plan, list[list[int]]]:
    """Returns the properties of each source, and the groups of copies. If the ends of a few files are held out, these
    files are examined again, as they will be cut."""
    are_few = sum(not source.problem for source in sources) <= FEW
    plan = _look(sources, cutting(form) if are_few else form, store, num_workers, progress)
    copies = find_copies(sources, plan, store, num_workers)
    stretches = hold_out(sources, plan, val_fraction, copies).stretches
    again = {
        i: cutting(form) if source.name in stretches else form
        for i, (source, info) in enumerate(zip(sources, plan, strict=True))
        if isinstance(info, AudioInfo) and (are_few or source.name in stretches)
    }
    return [look(again[i], store, sources[i]) if i in again else info for i, info in enumerate(plan)], copies


def _look(sources: list[Source], form: Form, store: RemoteStore | None, num_workers: int, progress: Progress) -> Plan:
    """Returns the properties of each source from its header, or the reason why it is refused."""
    plan: Plan = []
    seconds = 0.0
    for item in ordered(partial(look, form, store), sources, num_workers):
        plan.append(item)
        seconds += item.duration_s if isinstance(item, AudioInfo) else 0.0
        progress("looking", len(plan), len(sources), seconds, seconds)
    return plan


def _check_any_to_train_on(splits: list[str], refused: list[tuple[str, str]], num_files: int, output: Path) -> None:
    """Raises ValueError if nothing is left to train on; ``refused.csv`` is written nevertheless."""
    if "train" in splits:
        return
    such = f", such as {refused[0][0]!r}: {refused[0][1]}" if refused else ""
    if refused:
        output.mkdir(parents=True, exist_ok=True)
        write_refused(refused, output)
        such += f"; all are listed in {output / REFUSED}"
    raise ValueError(
        f"input: of {counted(num_files, 'file')} ({len(refused)} refused{such}) none is left for training; provide "
        "more files, another val_fraction, or a manifest with a column split"
    )


class _Run:
    """The state of one run: sources, options and progress."""

    def __init__(
        self,
        journal: Journal,
        sources: list[Source],
        form: Form,
        val_fraction: float,
        store: RemoteStore | None,
        progress: Progress,
    ):
        assert journal.plan is not None
        self.journal, self.form, self.store, self._progress = journal, form, store, progress
        self.held_out: HeldOut = hold_out(sources, journal.plan, val_fraction, journal.copies)
        self.about_copies = describe(journal.copies, sources, self.held_out.splits)
        usable = [
            (split, source, info)
            for split, source, info in zip(self.held_out.splits, sources, journal.plan, strict=True)
            if isinstance(info, AudioInfo)
        ]
        self.labels = Labels([source for _, source, _ in usable])
        usable = [(split, self.labels.marked(source), info) for split, source, info in usable]
        #: parts by split, of files of which only the end is held out
        self._parts = {
            source.name: parts_of(info, form, val_fraction)
            for _, source, info in usable
            if source.name in self.held_out.stretches
        }
        self._usable, self._files, self._seconds = usable, 0, 0.0
        self._all_seconds = sum(info.duration_s for _, _, info in usable)
        self.shards: list[dict[str, Any]] = []
        self.cuts = {
            source.name: self._parts[source.name]["train"].cut if source.name in self._parts else cut_of(info, form)
            for _, source, info in usable
        }
        self.refused = [
            (source.name, reason)
            for source, reason in zip(sources, journal.plan, strict=True)
            if isinstance(reason, str)
        ]

    def pack_split(self, split: str, output: Path, shard_bytes: int, num_workers: int) -> Tally:
        """Writes the shards of a split that are missing; returns the statistics of all of them."""
        entries = [entry for entry in self.journal.entries if entry["shard"]["split"] == split]
        self.shards += [entry["shard"] for entry in entries]
        tallies = [Tally.of(entry["tally"]) for entry in entries] + [Tally()]
        done, skip = entries[-1]["next"] if entries else (0, 0)
        for task in islice(self._tasks(split), done):
            self._count(task)
        writer = ShardWriter(output, split, len(entries), shard_bytes, self.store)
        for task, events in self._prepared(split, done, num_workers):
            for number, event in enumerate(events[skip:], skip + 1):
                tallies[-1].add(event)
                if isinstance(event, Clip):
                    writer.add(event)
                if writer.is_full:
                    self._finish(writer, tallies, (done, number) if number < len(events) else (done + 1, 0))
            done, skip = done + 1, 0
            self._count(task)
            self._progress("packing", self._files, len(self._usable), self._seconds, self._all_seconds)
        if writer.is_open:
            self._finish(writer, tallies, (done, 0))
        total = Tally()
        for tally in tallies:
            total.merge(tally)
        return total

    def _tasks(self, split: str) -> Iterator[Task]:
        for of_split, source, info in self._usable:
            if parts := self._parts.get(source.name):
                if split in parts:
                    yield from tasks(source, info, self.form, parts[split])
            elif of_split == split:
                yield from tasks(source, info, self.form)

    def rests(self) -> list[tuple[str, str]]:
        """Returns (file, audio left out at its end) of files that ``segment_s`` cuts."""
        return sorted(
            (
                name,
                f"its last {cut.left_out / cut.sample_rate:.3f} s are left out: less than half a piece",
            )
            for name, cut in self.cuts.items()
            if cut.left_out
        )

    def _prepared(self, split: str, done: int, num_workers: int) -> Iterator[tuple[Task, list[Clip | Drop]]]:
        """Yields the remaining tasks and their results."""
        results = ordered(partial(prepare, self.form, self.store), islice(self._tasks(split), done, None), num_workers)
        return zip(islice(self._tasks(split), done, None), results, strict=True)

    def _finish(self, writer: ShardWriter, tallies: list[Tally], following: tuple[int, int]) -> None:
        """Closes a shard and records it in the journal, with the task and the event to continue from."""
        shard = writer.close()
        self.journal.append({"shard": shard, "tally": tallies[-1].plain(), "next": following})
        self.shards.append(shard)
        tallies.append(Tally())

    def _count(self, task: Task) -> None:
        self._files += task.is_last
        self._seconds += task.seconds


def _notes(run: _Run, total: Tally, num_held_out: int) -> list[str]:
    """Lines about automatic decisions, and about what the user should check."""
    notes = [run.held_out.note] if run.held_out.note else []
    if not num_held_out and not run.held_out.note:
        notes.append("no held-out file can be used: training runs without validation")
    if run.held_out.stretches and run.form.format == "keep":
        notes[0] += "; they are cut, and therefore encoded again, as 16-bit FLAC"
    if total.digital_silence:
        notes.append(f"{total.digital_silence} of {counted(total.clips, 'clip')} are digital silence")
    return [*notes, *run.labels.notes(), *run.about_copies]


def _report(run: _Run, tallies: dict[str, Tally], options: dict[str, Any], resumed: int) -> PackReport:
    total, plan = Tally(), run.journal.plan or []
    for tally in tallies.values():
        total.merge(tally)
    clips = {split: tally.clips for split, tally in tallies.items()}
    seconds = {split: round(tally.seconds, 3) for split, tally in tallies.items()}
    classes = sorted(total.labels) if run.labels.are_used else []
    missing = [(name, reason) for name, _, reason in total.missing]
    refused = sorted([*run.refused, *total.refused, *missing, *total.silent_rows(run.form.silence_db)])
    rests = [cut.left_out / cut.sample_rate for cut in run.cuts.values() if cut.left_out]
    manifest = {
        "version": 1,
        "clips": clips,
        "seconds": seconds,
        "hours": round(total.seconds / 3600, 6),
        "classes": classes,
        "shards": run.shards,
        "made": options,
        "files": {"found": len(plan), "refused": len({name for name, _ in [*run.refused, *total.refused]})},
        "stretches": sorted(run.held_out.stretches),
        "rests": {"pieces": len(rests), "seconds": round(sum(rests), 3)},
        **total.statistics(),
    }
    notes = _notes(run, total, clips["val"])
    return PackReport(clips, seconds, classes, run.shards, refused, manifest, resumed, notes)
