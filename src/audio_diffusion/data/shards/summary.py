"""Summarises the data at the start of training: the clips, their conversion, and possible problems."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from audio_diffusion.data.audio.reading import UnusableAudio, read_crop
from audio_diffusion.data.remote import RemoteError, RemoteStore, is_remote
from audio_diffusion.data.shards.find import expand, find_held_out, parent, read_manifest
from audio_diffusion.data.shards.index import ShardIndex
from audio_diffusion.data.shards.members import READERS
from audio_diffusion.data.shards.shards import Shards, load_index
from audio_diffusion.data.training_data import CropFormat

_LOOKED_AT = 1000  # number of clips of a foreign shard whose labels are read
_HEARD, _HEARD_REMOTE = 20, 4  # number of clips of local and remote foreign shards that are checked for silence
_NAMED = 5  # number of formats and labels that are named
_SILENT_DB = -140  # level that the packer stores for digital silence


def summarize(
    train: Mapping[str, str],
    val: Mapping[str, str] | None,
    store: RemoteStore,
    crop: CropFormat,
    classes: list[str],
    validates: bool = True,
    audio_member: str | None = None,
) -> list[str]:
    """Returns lines about the data, from manifests or, for a data set without one, the index of its first shard.

    Args:
        train: patterns of the training shards by name.
        val: pattern of the held-out shards; None for those beside the training shards.
        store: store for URLs.
        crop: format of the crops.
        classes: class names used in training.
        validates: whether validation is requested.
        audio_member: ending of the member that is a clip's audio.

    Raises:
        ValueError: if there are no such shards.
        RemoteError: if a server does not answer.
    """
    lines, labelled = [], {}
    for name, pattern in train.items():
        which = f"{name}: " if len(train) > 1 else ""
        path = expand(pattern, store)[0]
        manifest = read_manifest(parent(path), store)
        index = None if manifest.get("formats") else load_index(path, store, audio_member=audio_member)
        lines.append(f"{which}{_clips(manifest, index)}; training on {_crops(crop)}")
        silent, total = _silence(manifest) if index is None else _silence_heard(path, index, store, crop, audio_member)
        if silent and 10 * silent >= total:
            lines.append(f"{which}{_warning(silent, total, is_part=index is not None)}")
        labelled[name] = bool(manifest.get("classes"))
        if not manifest.get("classes") and not classes:
            lines += [f"{which}{line}" for line in _labels(path, index, store)]
    if not classes and any(labelled.values()) and not all(labelled.values()):
        lines.append(_vanished(labelled))
    if not validates:
        return [*lines, "no validation, as val_every_steps is null"]
    held_out = find_held_out(train, val, store)
    if without := [pattern for name, pattern in train.items() if val is None and name not in held_out]:
        so = "training runs without validation" if not held_out else "validation does not include it"
        lines.append(f"nothing is held out in {', '.join(without)}: {so}")
    return lines


def _crops(crop: CropFormat) -> str:
    return f"{_format(crop.sample_rate, crop.channels)}, {crop.num_samples / crop.sample_rate:.3g} s"


def _format(sample_rate: int, channels: int) -> str:
    return f"{sample_rate} Hz {({1: 'mono', 2: 'stereo'}).get(channels, f'{channels} channels')}"


def _clips(manifest: Mapping[str, Any], index: ShardIndex | None) -> str:
    """Returns a line that describes the clips."""
    if index is None:
        counts = Counter({(f["sample_rate"], f["channels"]): f["clips"] for f in manifest["formats"]})
    else:
        counts = Counter(
            (rate, channels)
            for rate, channels in zip(index.sample_rate, index.channels, strict=True)
            if rate and channels
        )
    if not counts:
        return "the sample rate of your clips is unknown"
    total = sum(counts.values())
    shown = [
        _format(*kind) + (f" ({100 * count / total:.0f} %)" if len(counts) > 1 else "")
        for kind, count in counts.most_common(_NAMED)
    ]
    mean_s = manifest.get("durations_s", {}).get("mean")
    length = f", {mean_s:.3g} s on average" if mean_s else ""
    return f"your clips are {', '.join(shown)}{' ..' if len(counts) > _NAMED else ''}{length}"


def _silence(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the number of clips of digital silence, and the number of clips whose level is known."""
    histogram = manifest.get("levels_dbfs", {}).get("histogram", [])
    return sum(n for level, n in histogram if level <= _SILENT_DB), sum(n for _, n in histogram)


def _silence_heard(
    path: str, index: ShardIndex, store: RemoteStore, crop: CropFormat, audio_member: str | None
) -> tuple[int, int]:
    """Checks some clips of a foreign shard; returns the number that are zero at beginning, middle and end, and the
    number of checked clips."""
    shards = Shards([path], [len(index.keys)], [index.num_bytes], store, (), [index.etag], audio_member)
    samples = torch.empty(crop.shape)
    wanted, silent, total = _HEARD_REMOTE if is_remote(path) else _HEARD, 0, 0
    for number in range(0, len(index.keys), max(len(index.keys) // wanted, 1)):
        try:
            loudest = 0.0
            for where in (0.0, 0.5, 1.0):
                read_crop(shards.member(0, index.audio[number]), samples, crop.sample_rate, where)
                loudest = max(loudest, samples.abs().max().item())
        except (UnusableAudio, OSError, RemoteError):
            continue  # training reports it
        silent, total = silent + (loudest == 0), total + 1
    return silent, total


def _warning(silent: int, total: int, is_part: bool) -> str:
    """Returns a warning about clips that are digital silence."""
    which = "all" if silent == total else f"{silent} of {total}"
    which = f"{silent} of {total}" if is_part else which
    clips = "checked clips" if is_part else "clips"
    return f"warning: {which} {clips} are digital silence, which the network learns to generate. Check the data"


def _vanished(labelled: Mapping[str, bool]) -> str:
    """Returns a note that the labels of some data sets are not used because others have none."""
    having, lacking = ([name for name, has in labelled.items() if has is wanted] for wanted in (True, False))
    return (
        f"the labels of {', '.join(having)} are not used, because the manifest of {', '.join(lacking)} lists no "
        f"classes. To use them, add labels to {', '.join(lacking)}, or leave it out"
    )


def _labels(path: str, index: ShardIndex | None, store: RemoteStore) -> list[str]:
    """Returns a note if clips have labels that are not used because no list of classes is known."""
    if index is None:
        return []
    found = label_counts(path, index, store)
    if not found:
        return []
    names = sorted(found)
    some = json.dumps(names[:_NAMED], ensure_ascii=False).replace('"', "").replace(", ", ",")
    more = f" (and {len(names) - _NAMED} more)" if len(names) > _NAMED else ""
    return [f"labels of clips are not used, because no list of classes is given. To use them: 'classes={some}'{more}"]


def label_counts(path: str, index: ShardIndex, store: RemoteStore) -> Counter[str]:
    """Counts the labels of the first clips of a shard."""
    shards = Shards([path], [len(index.keys)], [index.num_bytes], store)
    counts: Counter[str] = Counter()
    for number in range(min(len(index.keys), _LOOKED_AT if not is_remote(path) else 20)):
        for ending in ("json", "cls"):
            place = index.fields.get(ending, [(0, 0)] * (number + 1))[number]
            if not place[1]:
                continue
            try:
                member = shards.member(0, place)
                value: Any = READERS[ending](member if isinstance(member, memoryview) else member.read())
            except (ValueError, OSError, RemoteError):
                continue
            label = value.get("label") if isinstance(value, dict) else value
            if isinstance(label, str | int) and not isinstance(label, bool):
                counts[str(label)] += 1
                break
    return counts
