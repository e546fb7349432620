"""Packs a folder of audio into WebDataset shards, or verifies shards.

python make_shards.py input=FOLDER output=SHARDS              # labels are the names of the sub-folders
python make_shards.py input=s3://bucket/folder output=SHARDS manifest=FILE.csv format=flac sample_rate=44100
python make_shards.py input=recording.wav output=SHARDS       # one file: its end is held out
python make_shards.py verify=SHARDS                           # reads and checks all; status 1 if something is wrong
"""

import os
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from audio_diffusion.cli import config
from audio_diffusion.cli.command_line import command
from audio_diffusion.cli.config import ConfigError
from audio_diffusion.cli.options import PackOptions
from audio_diffusion.data.remote import RemoteStore, is_remote, local_path
from audio_diffusion.data.wording import counted
from audio_diffusion.packing.datasets.drums import CLASSES
from audio_diffusion.packing.form import Form
from audio_diffusion.packing.manifests import scan_manifest
from audio_diffusion.packing.pack import PICTURE, REFUSED, PackReport, pack
from audio_diffusion.packing.parallel import Progress
from audio_diffusion.packing.sources import Source, scan_file, scan_folder, scan_url
from audio_diffusion.packing.verify import verify


def main(options: PackOptions) -> None:
    """Finds, checks and packs the files and prints a report; or verifies shards."""
    workers = options.num_workers or os.cpu_count() or 1
    try:
        store: RemoteStore = config.build(options.store, "store")
        if options.verify is not None:
            _verify(str(options.verify), workers, store)
        else:
            _pack(options, workers, store)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    except KeyboardInterrupt:
        print("stopped; repeat the command to continue from here")
        raise SystemExit(130) from None


def _sources(options: PackOptions, store: RemoteStore) -> list[Source]:
    place, by_folder = local_path(str(options.input)), options.labels == "folder"  # a folder's name may be a number
    try:
        remote = is_remote(place)
    except ValueError as error:
        raise ValueError(f"input: {str(error).removeprefix('shards: ')}") from error
    if options.manifest is not None:
        return scan_manifest(place, local_path(str(options.manifest)), store)
    if not remote and Path(place).is_file():
        return scan_file(Path(place))
    return scan_url(place, by_folder, store) if remote else scan_folder(Path(place), by_folder)


def _pack(options: PackOptions, workers: int, store: RemoteStore) -> None:
    form = Form(**{field.name: getattr(options, field.name) for field in fields(Form)})
    output = Path(str(options.output))
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: expected a folder, made if there is none, but {str(output)!r} is a file")
    stages: dict[str, Progress] = {}

    def show(stage: str, *counts: float) -> None:
        if stage not in stages:
            for earlier in stages.values():
                earlier.close()
            stages[stage] = Progress(stage)
        stages[stage](*counts)  # type: ignore[arg-type]

    try:
        sources = _sources(options, store)
        report = pack(
            sources,
            output,
            form=form,
            val_fraction=options.val_fraction,
            shard_bytes=int(options.shard_mb * 1e6),
            num_workers=workers,
            store=store,
            picture=True,
            progress=show,
        )
    finally:
        if stages:
            list(stages.values())[-1].close()
    _say(report, output, sum(bool(source.fields.get("caption")) for source in sources))


def _say(report: PackReport, output: Path, num_captions: int) -> None:
    if report.resumed:
        print(f"resumed after {counted(report.resumed, 'finished shard')}")
    for split, number in report.clips.items():
        print(f"{split:5} {number:7d} {'clip ' if number == 1 else 'clips'}  {report.seconds[split] / 3600:9.4f} h")
    print(f"classes: {', '.join(report.classes) or 'none'}")
    for note in report.notes:
        print(note)
    made = report.manifest
    if made["silent"]["pieces"]:
        print(f"silent: {counted(made['silent']['pieces'], 'piece')}, {made['silent']['seconds']:.1f} s, left out")
    if made["rests"]["pieces"]:
        print(f"rests of less than half a piece: {made['rests']['pieces']}, {made['rests']['seconds']:.1f} s, left out")
    if made["missing"]["files"]:
        missing = f"{counted(made['missing']['files'], 'file')}, {made['missing']['seconds']:.3f} s"
        print(f"used, although audio is missing (listed in {output / REFUSED}): {missing}")
    if made["clipped"]["clips"]:
        samples, clips = counted(made["clipped"]["samples"], "sample"), counted(made["clipped"]["clips"], "clip")
        print(f"over full scale, clipped: {samples} in {clips}")
    if made["loudness"]["limited"] or made["loudness"]["unknown"]:
        limited, unknown = counted(made["loudness"]["limited"], "clip"), made["loudness"]["unknown"]
        print(f"loudness: {limited} limited by their peaks, {unknown} too quiet to have one")
    if report.refused:
        print(f"left out, with reasons in {output / REFUSED}: {len(report.refused)}, e.g.")
        for name, reason in report.refused[:3]:
            print(f"    {name!r}: {reason}")
    print(f"a picture of durations, levels and classes: {output / PICTURE}")
    print(f"{counted(len(report.shards), 'shard')} in {output}/")
    num_files = made["files"]["found"] - made["files"]["refused"]
    if 0 < num_captions < num_files:
        print(
            f"captions: {counted(num_captions, 'file')} of {num_files} have one; condition=caption leaves out the rest"
        )
    condition = " condition=caption" if num_captions and num_captions >= num_files else ""
    print(f"next: {next_command(made, output)}{condition}")


def next_command(manifest: dict[str, Any], output: Path) -> str:
    """Returns the command that trains on the packed data, with the experiment that suits it best."""
    formats, mean_s = manifest["formats"], manifest["durations_s"]["mean"]
    classes, rate, channels = set(manifest["classes"]), formats[0]["sample_rate"], formats[0]["channels"]
    if classes == set(CLASSES) and rate == 16_000:
        experiment = "drums"
    elif mean_s < 1.5:
        experiment = "oneshots"
    elif rate > 32_000 and channels == 2 and mean_s > 20:
        experiment = "music"
    elif rate <= 24_000 or not classes:
        experiment = "speech"
    else:
        experiment = "environment"
    name = re.sub(r"[^\w-]+", "_", output.resolve().name) or "mine"
    return f"{command('train')} experiment={experiment} {shlex.quote(f'data.train={output}')} name={name}"


def _verify(place: str, workers: int, store: RemoteStore) -> None:
    bar = Progress("verifying", "shard")
    try:
        result = verify(place, num_workers=workers, store=store, progress=bar)
    finally:
        bar.close()
    for problem in result.problems:
        print(problem)
    count = counted(len(result.problems), "problem") if result.problems else "no problems"
    shards, clips = counted(result.num_shards, "shard"), counted(result.num_clips, "clip")
    print(f"{shards}, {clips}, {result.seconds / 3600:.4f} h: {count}")
    if result.problems:
        raise SystemExit(1)
