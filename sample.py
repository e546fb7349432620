"""Makes and edits audio with a trained model: checkpoint -> files, a json and a picture. Needs no Trainer and no W&B.

python sample.py ckpt=runs/quickstart num_samples=16
python sample.py ckpt=step_00010000.ckpt 'labels=[kick,snare]' guidance_scale=2 sampler=ddpm
python sample.py ckpt=runs/mine guidance_scale=3 'cond={caption: [a dog barks, rain on a roof], seconds_total: 10}'
python sample.py ckpt=runs/mine task=inpaint input=hit.wav 'regions=[[0.2,0.4]]'      # docs/use.md has them all
"""

import os

import audio_diffusion  # before torch, whose threads it tells how to wait

os.environ["WDS_SECURE"] = "1"  # WebDataset then neither unpickles nor runs commands; nothing here asks it to

import sys
from itertools import count
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from audio_diffusion import Generator, config
from audio_diffusion.config import ConfigError
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards import Shards, held_out
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.diffusion.levels import describe_levels
from audio_diffusion.redaction import without_redacted
from audio_diffusion.use.asked import Sample, batches, samples
from audio_diffusion.use.levels import told
from audio_diffusion.use.processes import devices_of, load, run
from audio_diffusion.use.results import COLUMNS, Result, draw, sha256_of, write_files, write_record

TYPES = {
    "ckpt": str, "num_samples": int | None, "labels": list[str] | None, "cond": dict | None, "seed": int,
    "guidance_scale": float | None, "guidance_interval": list[float], "guidance_rescale": float, "clip": float | None,
    "clip_quantile": float, "weak_ckpt": str | None, "weights": str, "batch_size": int, "device": str, "devices": int,
    "format": str, "output": str | None, "real": str | None,
}  # fmt: skip
FAILED_DB = -10.0  # of an inversion: what is lost is then heard beside the clip
TASK_TYPES = {
    "input": str | list[str], "seconds": float | None, "num_points": int, "regions": list[list[float]], "before": float,
    "after": float, "strength": float, "at": list[float], "num_steps": int, "cutoff": float, "level": float | None,
    "snr_db": float | None, "mean": bool,
}  # fmt: skip


def real_clips(model: Generator, shards: str | None, labels: list[str] | None, count: int) -> list[Tensor]:
    """One held-out clip per wanted label (``count`` of any, where there are none), each another; fewer where there are
    not so many."""
    data, audio = model.config.get("data") or {}, model.config["audio"]
    if not data and not shards:
        return []  # an exported model knows nothing of them
    store = data.get("store") or {}
    try:
        patterns = [shards] if shards else list(held_out(data["train"], data["val"]).values())
        remote = RemoteStore(None, storage_options=without_redacted(store.get("storage_options")))
        real = Shards.open(patterns, remote, data.get("audio_member"))
    except (ValueError, RemoteError):
        if shards:
            raise
        return []  # the shards of training are not here: the picture does without
    classes = model.classes if labels else []
    wanted = [classes.index(label) for label in labels[:count]] if labels else [-1] * count
    found: list[Tensor | None] = [None] * len(wanted)
    clips = read_in_order(real, audio["sample_rate"], audio["channels"], audio["num_samples"], classes)
    for clip, audio_of_clip in clips:
        slot = next((i for i, label in enumerate(wanted) if found[i] is None and label == clip.label), None)
        if slot is not None and clip.num_valid:
            found[slot] = audio_of_clip
        if all(audio is not None for audio in found):
            break
    return [audio for audio in found if audio is not None]


def home_of(model: Generator) -> Path:
    """Where its sounds go by default: the run's folder, or that which the file or the exported folder is in."""
    path = model.source
    return path.parents[1] if path.parent.name == "checkpoints" else path.parent


@config.entry("sample")
def main(cfg: DictConfig) -> None:
    """Load, make batch by batch, write."""
    options: dict[str, Any] = config.to_plain(cfg)
    config.check_types(options, TYPES | {name: kind for name, kind in TASK_TYPES.items() if name in options})
    for name in ("num_samples", "batch_size"):
        if options[name] is not None and options[name] < 1:
            raise ConfigError(f"{name}: expected at least 1, got {options[name]}")
    if len(options["guidance_interval"]) != 2:
        raise ConfigError(f"guidance_interval: expected two times, [0, 1], got {options['guidance_interval']}")
    if options["format"] not in ("wav", "flac"):
        raise ConfigError(f"format: expected wav or flac, got {options['format']!r}")
    task, devices = options["task"], devices_of(options["device"], options["devices"])
    model = load(options, devices[0] if len(devices) == 1 else "cpu")
    asked = samples(model, options)
    where = devices[0] if len(devices) == 1 else f"{len(devices)} processes, {', '.join(sorted(set(devices)))}"
    print(f"{model.source}: step {model.step}, {model.weights.upper()} weights, on {where}")
    if "sampler" in options:  # another than that of training, of which train.py has said it
        for line in describe_levels(model.process, model.sampler)[1:]:
            print(line)
    for file in {file.path: file for sample in asked for file in sample.files if file.converted}.values():
        print(f"{file.path}: {file.converted}")
    for path, note in {file.path: file.note for sample in asked for file in sample.files if file.note}.items():
        print(f"{path}: {note}")

    home = home_of(model)
    output = Path(options["output"] or home / ("generated" if task == "generate" else task))
    rows: list[dict[str, Any]] = []
    shown: list[tuple[Sample, Result]] = []  # in the picture
    work = list(batches(asked, options["batch_size"]))
    seconds = 0.1 if sys.stderr.isatty() else 10  # a log file wants few lines
    with tqdm(total=len(asked), desc=task, unit="sample", mininterval=seconds, miniters=0) as bar:
        if len(devices) == 1:  # a batch may take minutes: that it goes on is seen by these
            calls = count(1)

            def called(*_: object) -> None:
                bar.set_postfix_str(f"{next(calls)} network calls", refresh=False)
                bar.update(0)

            model.net.register_forward_pre_hook(called)
        for batch, results in zip(work, run(model, options, work, devices), strict=True):
            rows += write_files(batch, results, output, model.sample_rate, task, options["format"])
            shown += list(zip(batch, results, strict=True))[: COLUMNS - len(shown)]
            bar.update(len(batch))

    real = []
    if task == "generate":
        real = real_clips(model, options["real"], [s.label for s, _ in shown if s.label], len(shown))
    picture = draw(shown, real, model.sample_rate, output.with_suffix(".png"))
    about = {
        "command": ["python", "sample.py", *sys.argv[1:]],
        "checkpoint": {"path": str(model.source), "sha256": sha256_of(model.source), "step": model.step},
        "options": options,
        "sampler": options.get("sampler") or model.config["sampler"],
        "guidance_scale": model.guidance.scale if model.guidance else model.guidance_scale,
        "versions": {"audio_diffusion": audio_diffusion.__version__, "torch": torch.__version__},
        "sample_rate": model.sample_rate,
    }
    record = output.with_suffix(".json")
    write_record(record, about, rows)
    tell(rows, task, options["format"], home)
    print(f"{len(rows)} files: {output}/   how each was made: {record}   picture: {picture}")


def tell(rows: list[dict[str, Any]], task: str, format: str, home: Path) -> None:
    """What is to be known of the files."""
    clipped = sum(row["samples_clipped"] > 0 for row in rows)
    if clipped:
        print(f"{clipped} of {len(rows)} clips go over full scale and were clipped in the files")
    if troubles := {row["file"]: row["trouble"] for row in rows if "trouble" in row}:
        print(f"warning: {told(troubles, len(rows))}")
    if format == "flac" and any(row["subtype"] == "PCM_24" for row in rows):
        print("FLAC holds no floats: 24 bits; format=wav keeps every bit")
    if task == "interpolate":
        worst = max(max(row["round_trip_error_db"]) for row in rows)
        print(f"to noise and back: {worst:.1f} dB at worst (0 dB would be the clip's own level)")
        if worst > FAILED_DB:
            print("the network does not know such sounds well enough to come back to them: doubt what is between")
    if (home / "wandb").is_dir():
        print(f"the training run in W&B: wandb login && wandb sync {home}/wandb/offline-run-*   (if it ran offline)")
    kinds = ", ".join(sorted({row["subtype"] for row in rows}))
    print(f"listen with any player: the files are {format.upper()} ({kinds}), named <index>_<name>.{format}")


if __name__ == "__main__":
    main()
