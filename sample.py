"""Generates audio with a trained model: checkpoint -> .wav files and a picture. Needs no Trainer and no W&B.

python sample.py ckpt=runs/quickstart num_samples=16
python sample.py ckpt=step_00010000.ckpt labels=[kick,snare] guidance_scale=2 sampler=ddpm
python sample.py ckpt=runs/mine guidance_scale=3 'cond={caption: [a dog barks, rain on a roof], seconds_total: 10}'
"""

import os

# before torch: threads that spin long while they wait make steps ten times slower where other programs run as well
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ["WDS_SECURE"] = "1"  # WebDataset then neither unpickles nor runs commands; nothing here asks it to

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from audio_diffusion import checkpoint, config, pictures
from audio_diffusion.config import ConfigError, build, nearest
from audio_diffusion.data.audio import UnusableAudio, file_name, read_crop, write_audio
from audio_diffusion.data.members import read_npy
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards import Shards, held_out
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.redaction import without_redacted
from audio_diffusion.seeding import seed_of

COLUMNS = 10  # clips in the picture
TYPES = {
    "ckpt": str, "num_samples": int, "labels": list[str] | None, "cond": dict | None, "seed": int,
    "guidance_scale": float | None, "guidance_interval": list[float], "guidance_rescale": float, "clip": float | None,
    "clip_quantile": float, "weak_ckpt": str | None, "weights": str, "batch_size": int, "device": str,
    "output": str | None, "real": str | None,
}  # fmt: skip


def real_clips(model: checkpoint.Generator, shards: str | None, labels: list[str] | None, count: int) -> list[Tensor]:
    """One held-out clip per wanted label (``count`` of any, where there are none), each another; fewer where there are
    not so many."""
    data, audio = model.config["data"], model.config["audio"]
    try:
        patterns = [shards] if shards else list(held_out(data["train"], data["val"]).values())
        real = Shards.open(
            patterns,
            RemoteStore(None, storage_options=without_redacted((data.get("store") or {}).get("storage_options"))),
        )
    except (ValueError, RemoteError):
        if shards:
            raise
        return []  # the shards of training are not here: the picture does without
    classes = model.classes if labels else []
    wanted = [classes.index(label) for label in labels[:count]] if labels else [-1] * count
    found: list[Tensor | None] = [None] * len(wanted)
    clips = read_in_order(real, audio["sample_rate"], audio["channels"], audio["num_samples"], classes)
    for clip, samples in clips:
        slot = next((i for i, label in enumerate(wanted) if found[i] is None and label == clip.label), None)
        if slot is not None and clip.num_valid:
            found[slot] = samples
        if all(audio is not None for audio in found):
            break
    return [audio for audio in found if audio is not None]


def label_per_sample(model: checkpoint.Generator, labels: list[str] | None, num_samples: int) -> list[str] | None:
    """The label of every sample, taken in turn; all of a model that is told nothing else, None where there are none.

    Raises:
        ConfigError: for labels given to a model that takes none.
    """
    if labels and not model.classes:
        raise ConfigError(f"labels: got {labels}, but this model takes none")
    alone = set(model.conditions.by_name) == {"label"}
    names = labels or (model.classes if alone else None)
    return [names[i % len(names)] for i in range(num_samples)] if names else None


def read_value(model: checkpoint.Generator, name: str, value: Any) -> Any:
    """A condition's value as the command line has it: words or a number as they are, files of audio or .npy read.

    Raises:
        ConfigError: for a file that cannot be read.
    """
    condition, audio = model.conditions.by_name.get(name), model.config["audio"]
    try:
        if condition is not None and condition.field == "audio":
            out = torch.zeros(audio["channels"], audio["num_samples"])
            read_crop(str(value), out, model.sample_rate)
            return out
        return torch.from_numpy(read_npy(Path(value).read_bytes())) if str(value).endswith(".npy") else value
    except (OSError, UnusableAudio) as error:
        raise ConfigError(f"cond.{name}: {str(value)!r} cannot be read: {error}") from error


def cond_per_sample(model: checkpoint.Generator, cond: dict[str, Any] | None, num_samples: int) -> dict[str, list[Any]]:
    """The values of each condition, taken in turn by the samples."""
    if cond and "label" in cond:
        raise ConfigError("cond.label: labels are given by name: labels=[..]")
    found = {}
    for name, value in (cond or {}).items():
        values = [read_value(model, name, v) for v in (value if isinstance(value, list) else [value])]
        if not values:
            raise ConfigError(f"cond.{name}: expected a value or a list of them, got none")
        found[name] = [values[i % len(values)] for i in range(num_samples)]
    return found


def part_of(cond: dict[str, list[Any]], part: slice) -> dict[str, Any]:
    """The values of some of the samples, those read from files as a tensor."""
    chosen = {name: values[part] for name, values in cond.items()}
    return {name: torch.stack(v) if isinstance(v[0], Tensor) else v for name, v in chosen.items()}


def names_of(labels: list[str] | None, cond: dict[str, list[Any]], num_samples: int) -> list[str]:
    """What the samples' files are called: by label, else by the first words they are given."""
    words = next((values for values in cond.values() if isinstance(values[0], str)), None)
    return [file_name(word) for word in labels or words or [""] * num_samples]


def negative_of(model: checkpoint.Generator, negative: str | dict[str, Any]) -> Callable[[int], dict[str, Tensor]]:
    """What to move away from, a class name or other conditions by name, for a batch of so many.

    Raises:
        ConfigError: for a label that the model does not have.
    """
    if isinstance(negative, dict):
        cond = cond_per_sample(model, negative, 1)
    elif negative in model.classes:
        cond = {"label": [model.classes.index(negative)]}
    else:
        raise ConfigError(f"negative: {negative!r} is no label of this model.{nearest(negative, model.classes)}")
    device = next(model.net.parameters()).device

    def repeated(count: int) -> dict[str, Tensor]:
        values = part_of({name: value * count for name, value in cond.items()}, slice(count))
        return {name: value for name, value in model.conditions.given(values, count, device).items() if name in cond}

    return repeated


def guidance_of(model: checkpoint.Generator, options: dict[str, Any]) -> Callable[[int], Guidance]:
    """What the options say about guidance, for a batch of so many.

    Raises:
        ConfigError: for a negative label that the model does not have, or a weak model of another kind.
    """
    scale = options["guidance_scale"]
    weak, negative = None, None
    if options["negative"] is not None:
        negative = negative_of(model, options["negative"])
    device = next(model.net.parameters()).device
    if options["weak_ckpt"]:
        other = checkpoint.load(checkpoint.find(options["weak_ckpt"]), weights=options["weights"], device=device)
        if (other.classes, other.config["diffusion"]) != (model.classes, model.config["diffusion"]):
            raise ConfigError("weak_ckpt: expected a model of the same classes and diffusion as ckpt's")
        weak = other.net
    low, high = options["guidance_interval"]
    return lambda count: Guidance(
        scale=model.guidance_scale if scale is None else scale,
        interval=(low, high),
        rescale=options["guidance_rescale"],
        negative=negative and negative(count),
        weak=weak,
        clip=options["clip"],
        clip_quantile=options["clip_quantile"],
    )


def write(model: checkpoint.Generator, clips: list[Tensor], names: list[str], output: Path, real: list[Tensor]) -> Path:
    """Writes <index>_<name>.wav and the picture beside the folder; returns the picture's path."""
    output.mkdir(parents=True, exist_ok=True)
    for i, (clip, name) in enumerate(zip(clips, names, strict=True)):
        write_audio(output / f"{i:03d}_{name}.wav", clip, model.sample_rate)
    shown = min(COLUMNS, len(clips))
    rows: list[tuple[str, list[Tensor], list[str]]] = [("generated", clips[:shown], names[:shown])]
    if real:
        rows.insert(0, ("real", real, names[: len(real)]))
    return pictures.save(pictures.sample_grid(rows, model.sample_rate), output.with_suffix(".png"))


@config.entry("sample")
def main(cfg: DictConfig) -> None:
    """Load, generate batch by batch, write."""
    options: dict[str, Any] = config.to_plain(cfg)
    config.check_types(options, TYPES)
    for name in ("num_samples", "batch_size"):
        if options[name] < 1:
            raise ConfigError(f"{name}: expected at least 1, got {options[name]}")
    if len(options["guidance_interval"]) != 2:
        raise ConfigError(f"guidance_interval: expected two times, [0, 1], got {options['guidance_interval']}")
    path, device = checkpoint.find(options["ckpt"]), checkpoint.device_of(options["device"])
    model = checkpoint.load(path, weights=options["weights"], device=device)
    sampler = build(options["sampler"], "sampler") if "sampler" in options else None
    num_samples, batch_size = options["num_samples"], options["batch_size"]
    labels = label_per_sample(model, options["labels"], num_samples)
    cond = cond_per_sample(model, options["cond"], num_samples)
    seeds = [seed_of(options["seed"], "sample", i) for i in range(num_samples)]
    guidance = guidance_of(model, options)
    print(f"{path}: step {model.step}, {model.weights.upper()} weights, on {device}")

    clips: list[Tensor] = []
    for start in tqdm(range(0, num_samples, batch_size), desc="generating", unit="batch"):
        part = slice(start, start + batch_size)
        audio = model.generate(
            seeds[part],
            labels[part] if labels else None,
            cond=part_of(cond, part),
            guidance=guidance(len(seeds[part])),
            sampler=sampler,
        )
        clips.extend(audio.cpu())

    names = names_of(labels, cond, num_samples)
    run_dir = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    output = Path(options["output"] or run_dir / "generated")
    picture = write(model, clips, names, output, real_clips(model, options["real"], labels, min(COLUMNS, num_samples)))
    clipped = sum(int((clip.abs() > 1).any()) for clip in clips)
    if clipped:
        print(f"{clipped} of {num_samples} clips go over full scale and were clipped in the .wav files")
    if (run_dir / "wandb").is_dir():
        print(f"the training run in W&B: wandb login && wandb sync {run_dir}/wandb/offline-run-*   (if it ran offline)")
    print(f"listen with any player: the files are 16-bit WAV, {model.sample_rate} Hz, named <index>_<name>.wav")
    print(f"{num_samples} generated clips: {output}/   picture, real above generated below: {picture}")


if __name__ == "__main__":
    main()
