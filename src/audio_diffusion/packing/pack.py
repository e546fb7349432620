"""Sources -> shards, indexes, a manifest, a list of what was refused, a picture. The parts are in the files beside."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from audio_diffusion import pictures
from audio_diffusion.data.audio import AudioInfo
from audio_diffusion.data.index import write_atomic
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards import MANIFEST
from audio_diffusion.packing.journal import Journal, Plan
from audio_diffusion.packing.parallel import ordered
from audio_diffusion.packing.prepare import Clip, Drop, Form, Task, cut_of, look, prepare, tasks
from audio_diffusion.packing.manifests import scan_manifest
from audio_diffusion.packing.sources import Source, scan_folder, split_of
from audio_diffusion.packing.statistics import Tally
from audio_diffusion.packing.writer import ShardWriter

__all__ = ["PackReport", "Source", "pack", "scan_folder", "scan_manifest", "split_of"]

REFUSED, PICTURE = "refused.csv", "manifest.png"
Told = Callable[[str, int, int, float, float], None]  # stage, files done, files, seconds done, seconds


@dataclass
class PackReport:
    """What was packed, by split, and what was left out: (file, reason). ``resumed`` shards were there already."""

    clips: dict[str, int]
    seconds: dict[str, float]
    classes: list[str]
    shards: list[dict[str, Any]]
    refused: list[tuple[str, str]]
    manifest: dict[str, Any]
    resumed: int


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
    progress: Told = lambda *told: None,
) -> PackReport:
    """Decodes every file to its end, and writes shards, indexes, ``manifest.json``, ``refused.csv``, ``manifest.png``.

    The same input gives the same bytes. Clips stand in the order of a hash of their sources' names, so every shard
    holds a mixture. A run that was killed goes on when it is started again; what is in the output under its final name
    is whole at any time, and the manifest comes last.

    Args:
        sources: what to pack.
        output: folder for the shards; it must hold none, or those of the same run, unfinished.
        form: what is made of the files; None keeps them as they are.
        val_fraction: share held out, by hash of the source's name, of files whose split nothing names.
        shard_bytes: a shard is closed once it holds this much.
        num_workers: processes that decode.
        store: for sources that are URLs.
        picture: also draw durations, levels and classes.
        progress: told how far it is.

    Raises:
        ValueError: if the output holds other shards, a number is out of range, or no clip is left to train on or held
            out.
    """
    form = form or Form()
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction: expected between 0 and 1, got {val_fraction}")
    for name, value in {"shard_bytes": shard_bytes, "num_workers": num_workers}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    sources = sorted(sources, key=lambda source: source.digest)
    options = {**asdict(form), "val_fraction": val_fraction, "shard_bytes": shard_bytes}
    splits = [split_of(source, val_fraction) for source in sources]
    with Journal(output, sources, options) as journal:
        resumed = len(journal.entries)
        if journal.plan is None:
            plan = _look(sources, form, store, num_workers, progress)
            usable = [split for split, item in zip(splits, plan, strict=True) if isinstance(item, AudioInfo)]
            _check_splits(usable, plan)
            journal.begin(plan)
        run = _Run(journal, sources, splits, form, store, progress)
        tallies = {split: run.pack_split(split, output, shard_bytes, num_workers) for split in ("train", "val", "test")}
        _check_splits([split for split, tally in tallies.items() if tally.clips], journal.plan or [])
        report = _report(run, tallies, options, resumed)
        _write_report(report, output, picture)
        journal.finish()
    return report


def _write_report(report: PackReport, output: Path, picture: bool) -> None:
    """What is told of the data set, beside it; the manifest last, as it says that all is there."""
    with open(output / REFUSED, "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
        csv.writer(f).writerows([("file", "reason"), *report.refused])
    if picture:
        pictures.save(pictures.data_set(report.manifest), output / PICTURE)
    write_atomic(output / MANIFEST, json.dumps(report.manifest, indent=1))


def _look(sources: list[Source], form: Form, store: RemoteStore | None, num_workers: int, progress: Told) -> Plan:
    """What each source holds, by its header, or why it is refused."""
    plan: Plan = []
    seconds = 0.0
    for item in ordered(partial(look, form, store), sources, num_workers):
        plan.append(item)
        seconds += item.duration_s if isinstance(item, AudioInfo) else 0.0
        progress("looking", len(plan), len(sources), seconds, seconds)
    return plan


def _check_splits(given: list[str], plan: Plan) -> None:
    """Raises ValueError where nothing is left to train on or to hold out."""
    for split in ("train", "val"):
        if split not in given:
            refused = [item for item in plan if isinstance(item, str)]
            such = f", such as: {refused[0]}" if refused else ""
            raise ValueError(
                f"input: of {len(plan)} files ({len(refused)} refused{such}) none is left for {split}; give more "
                "files, another val_fraction, or a manifest with a column split"
            )


class _Run:
    """One run: what is packed, how, and how far it is."""

    def __init__(
        self,
        journal: Journal,
        sources: list[Source],
        splits: list[str],
        form: Form,
        store: RemoteStore | None,
        progress: Told,
    ):
        assert journal.plan is not None
        self.journal, self.form, self.store, self._progress = journal, form, store, progress
        usable = [
            (split, source, info)
            for split, source, info in zip(splits, sources, journal.plan, strict=True)
            if isinstance(info, AudioInfo)
        ]
        self._usable, self._files, self._seconds = usable, 0, 0.0
        self._all_seconds = sum(info.duration_s for _, _, info in usable)
        self.shards: list[dict[str, Any]] = []
        self.cuts = [cut_of(info, form) for _, _, info in usable]
        self.refused = [
            (source.name, reason)
            for source, reason in zip(sources, journal.plan, strict=True)
            if isinstance(reason, str)
        ]

    def pack_split(self, split: str, output: Path, shard_bytes: int, num_workers: int) -> Tally:
        """Writes the shards of a split that are not there yet; what all of them hold."""
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
            if of_split == split:
                yield from tasks(source, info, self.form)

    def _prepared(self, split: str, done: int, num_workers: int) -> Iterator[tuple[Task, list[Clip | Drop]]]:
        """The tasks that are left, and what came of each."""
        results = ordered(partial(prepare, self.form, self.store), islice(self._tasks(split), done, None), num_workers)
        return zip(islice(self._tasks(split), done, None), results, strict=True)

    def _finish(self, writer: ShardWriter, tallies: list[Tally], following: tuple[int, int]) -> None:
        """Closes a shard and notes it, with the task and the event in it that follow."""
        shard = writer.close()
        self.journal.append({"shard": shard, "tally": tallies[-1].plain(), "next": following})
        self.shards.append(shard)
        tallies.append(Tally())

    def _count(self, task: Task) -> None:
        self._files += task.is_last
        self._seconds += task.seconds


def _report(run: _Run, tallies: dict[str, Tally], options: dict[str, Any], resumed: int) -> PackReport:
    total, plan = Tally(), run.journal.plan or []
    for tally in tallies.values():
        total.merge(tally)
    clips = {split: tally.clips for split, tally in tallies.items()}
    seconds = {split: round(tally.seconds, 3) for split, tally in tallies.items()}
    classes = sorted(total.labels) if not total.unlabelled else []
    refused = sorted([*run.refused, *total.refused, *total.silent_rows(run.form.silence_db)])
    rests = [cut.left_out / cut.sample_rate for cut in run.cuts if cut.left_out]
    manifest = {
        "version": 1,
        "clips": clips,
        "seconds": seconds,
        "hours": round(total.seconds / 3600, 6),
        "classes": classes,
        "shards": run.shards,
        "made": options,
        "files": {"found": len(plan), "refused": len({name for name, _ in [*run.refused, *total.refused]})},
        "rests": {"pieces": len(rests), "seconds": round(sum(rests), 3)},
        **total.statistics(),
    }
    return PackReport(clips, seconds, classes, run.shards, refused, manifest, resumed)
