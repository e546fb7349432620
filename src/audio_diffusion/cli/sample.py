"""Generates and edits audio with a trained model: checkpoint -> files, a json and a picture. Needs no Trainer or W&B.

python sample.py ckpt=runs/quickstart num_samples=16
python sample.py ckpt=step_00010000.ckpt 'labels=[kick,snare]' guidance_scale=2 sampler=ddpm
python sample.py ckpt=runs/mine guidance_scale=3 'cond={caption: [a dog barks, rain on a roof], seconds_total: 10}'
python sample.py ckpt=runs/mine task=inpaint input=hit.wav 'regions=[[0.2,0.4]]'      # docs/editing.md has them all
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import audio_diffusion
from audio_diffusion.callbacks.page.page import write_results_page
from audio_diffusion.cli.command_line import command, typed
from audio_diffusion.cli.interruption import CtrlC, end
from audio_diffusion.cli.options import SampleOptions
from audio_diffusion.cli.output import beside, claim, default_folder, note_of
from audio_diffusion.cli.own_parts import sampler_of
from audio_diffusion.cli.processes import devices_of, load, run
from audio_diffusion.cli.requests import batches, samples
from audio_diffusion.cli.results import COLUMNS, draw, hash_of, write_files, write_record
from audio_diffusion.cli.samples import Result, Sample
from audio_diffusion.cli.tasks.task import Task, make_task
from audio_diffusion.data.held_out import real_clips
from audio_diffusion.data.wording import counted
from audio_diffusion.diffusion.levels import describe_levels
from audio_diffusion.inference.levels import summary
from audio_diffusion.inference.model import Model


def announce(model: Model, options: SampleOptions, requests: list[Sample], devices: list[str]) -> None:
    """Prints the model, its device, warnings about the sampler, and the conversions of the input files."""
    where = devices[0] if len(devices) == 1 else f"{len(devices)} processes, {', '.join(sorted(set(devices)))}"
    print(f"{model.source}: step {model.step}, {model.weights.upper()} weights, on {where}")
    if options.sampler is not None:  # train.py has reported the levels of the training's own sampler
        for line in describe_levels(model.process, model.sampler)[1:]:
            print(line)
    files = [file for sample in requests for file in sample.files]
    for line in dict.fromkeys(f"{f.path}: {words}" for f in files for words in (f.converted, f.note) if words):
        print(line)


@dataclass
class Work:
    """The results of a command so far."""

    task: Task
    output: Path
    is_named: bool  # whether the user named the folder; else a new one is created with the first result
    rows: list[dict[str, Any]] = field(default_factory=list)
    shown: list[tuple[Sample, Result]] = field(default_factory=list)  # results in the picture

    def write(self, batch: list[Sample], results: list[Result], sample_rate: int, options: SampleOptions) -> None:
        """Writes the results of a batch."""
        if not self.rows and not self.is_named:
            self.output = claim(self.output)
        self.rows += write_files(batch, results, self.output, sample_rate, self.task, options.format)
        self.shown += list(zip(batch, results, strict=True))[: COLUMNS - len(self.shown)]


def make(model: Model, options: SampleOptions, requests: list[Sample], devices: list[str], work: Work) -> bool:
    """Generates and writes batch after batch; returns whether Ctrl-C ended it early."""
    planned = list(batches(requests, options.batch_size))
    seconds = 0.1 if sys.stderr.isatty() else 10  # few lines in a log file
    with (
        CtrlC() as ctrl_c,
        tqdm(total=len(requests), desc=options.task, unit="sample", mininterval=seconds, miniters=0) as bar,
    ):
        if len(devices) == 1:  # a batch may take minutes: network calls show progress within it
            calls = count(1)

            def called(*_: object) -> None:
                bar.set_postfix_str(f"{next(calls)} network calls", refresh=False)
                bar.update(0)

            model.net.register_forward_pre_hook(called)
        for batch, results in zip(planned, run(model, work.task, options, planned, devices), strict=True):
            with ctrl_c.held():
                work.write(batch, results, model.sample_rate, options)
                bar.update(len(batch))
    return ctrl_c.received


def record(model: Model, options: SampleOptions, work: Work) -> Path:
    """Writes the json that records how each file was made; returns its path."""
    about = {
        "command": [*command("sample").split(), *typed()],
        "checkpoint": {"path": str(model.source), "sha256": hash_of(model.source), "step": model.step},
        "options": options.record(),
        "sampler": sampler_of(model.origin.nodes["sampler"], options.sampler),
        "guidance_scale": model.guidance.scale if model.guidance else model.guidance_scale,
        "versions": {"audio_diffusion": audio_diffusion.__version__, "torch": torch.__version__},
        "sample_rate": model.sample_rate,
    }
    path = beside(work.output, ".json")
    write_record(path, about, work.rows)
    return path


def write_page_beside(folder: Path) -> str:
    """Writes a page to listen on beside the files; returns a note to print, empty if it cannot be written."""
    path = beside(folder, ".html")
    try:
        for note in write_results_page(folder, path):
            print(f"{path}: {note}")
    except (ValueError, OSError) as error:
        print(f"the page could not be written: {error}")
        return ""
    return f"   to listen: {path}"


def main(options: SampleOptions) -> None:
    """Loads the model, generates batch by batch, and writes the results."""
    task, devices = make_task(options.task, options.record()), devices_of(options.device, options.devices)
    model = load(options, devices[0] if len(devices) == 1 else "cpu")
    requests = samples(model, options, task)
    announce(model, options, requests, devices)

    default = default_folder(model, options.ckpt, options.task)
    work = Work(task, Path(options.output or default), options.output is not None)
    if work.is_named and (note := note_of(work.output)):
        print(note)
    interrupted = False
    try:
        interrupted = make(model, options, requests, devices, work)
    finally:  # the finished files get their json even after an error
        if work.rows:
            written = record(model, options, work)
    if interrupted and not work.rows:
        end("no file was finished")
    if interrupted:
        end(f"{counted(len(work.rows), 'file')} finished and kept: {work.output}/   how each was made: {written}")

    real = []
    if options.task == "generate":
        labels = [sample.label for sample, _ in work.shown if sample.label]
        origin = model.origin
        real = real_clips(origin.data, options.real, model.crop, origin.classes, labels, len(work.shown))
    page = write_page_beside(work.output)
    picture = draw(work.shown, real, model.sample_rate, task, beside(work.output, ".png"))
    for line in notes(work.rows, task, options.format):
        print(line)
    if work.output.name != default.name and not work.is_named:
        print(f"{default} exists from an earlier command: a new folder was created")
    print(
        f"{counted(len(work.rows), 'file')}: {work.output}/   how each was made: {written}   picture: {picture}{page}"
    )


def notes(rows: list[dict[str, Any]], task: Task, format: str) -> Iterator[str]:
    """Yields the lines about the files that are printed at the end."""
    clipped = sum(row["samples_clipped"] > 0 for row in rows)
    if clipped:
        yield f"{clipped} of {len(rows)} clips exceed full scale and were clipped in the files"
    if troubles := {row["file"]: row["trouble"] for row in rows if "trouble" in row}:
        yield f"warning: {summary(troubles, len(rows))}"
    if format == "flac" and any(row["subtype"] == "PCM_24" for row in rows):
        yield "FLAC does not support floats: the files have 24 bits; format=wav keeps every bit"
    yield from task.notes(rows)
    kinds = ", ".join(sorted({row["subtype"] for row in rows}))
    yield f"listen with any player: the files are {format.upper()} ({kinds}), named <index>_<name>.{format}"
