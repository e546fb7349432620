"""Finds and reads the audio that a model, or a folder of audio, is evaluated with."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from audio_diffusion.checkpoints.redaction import REDACTED
from audio_diffusion.cli.config import ConfigError
from audio_diffusion.data.audio.reading import EXTENSIONS, UnusableAudio
from audio_diffusion.data.audio.recording import probe, read_file
from audio_diffusion.data.batch import collate
from audio_diffusion.data.held_out import member_of, store_of
from audio_diffusion.data.remote import RemoteError
from audio_diffusion.data.shards.find import by_name, find_held_out, read_classes
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.inference.model import Model
from audio_diffusion.metrics.metric import Clips


def patterns(model: Model, data: str | None) -> list[str]:
    """The patterns of the shards to evaluate on, by the rules of ``reference`` in configs/evaluate.yaml.

    Raises:
        ConfigError: if secrets were redacted from the shards' address in the checkpoint.
    """
    trained_on = model.origin.data
    if data is None and trained_on is None:
        raise ConfigError("data: an exported model does not know where its data are; give shards: data=SHARDS")
    if data is None and trained_on and REDACTED in str((trained_on.train, trained_on.val)):
        raise ConfigError("data: the address of the training data was stored without its secrets; give it: data=SHARDS")
    if data is not None and not Path(data).is_dir() and data.endswith(".tar"):
        return [data]
    train: Any
    train, val = (trained_on.train, trained_on.val) if data is None and trained_on else (data, None)
    try:
        found = find_held_out(train, val, store_of(model.origin.data))
    except RemoteError as error:
        raise ConfigError(f"data: {error}") from error
    if not found:
        where = data or ", ".join(by_name(train).values())
        raise ConfigError(
            f"data: expected held-out shards (val-*.tar) in {where}, found none; give shards to evaluate on: "
            "data=SHARDS, or, of those that were trained on, which tells little of new clips: 'data=SHARDS/train-*.tar'"
        )
    return list(found.values())


def open_shards(model: Model, found: list[str], option: str) -> Shards:
    """Opens the shards of patterns; ``option`` is named in messages.

    Raises:
        ConfigError: if there are none.
    """
    try:
        return Shards.open(found, store_of(model.origin.data), member_of(model.origin.data))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _is_folder_without_shards(path: str) -> bool:
    """Whether a path is a folder that is read as audio files."""
    return Path(path).is_dir() and not list(Path(path).glob("*.tar"))


def _training_shards(pattern: str) -> str:
    """The training shards of a folder of shards; any other pattern as it is."""
    is_folder = not pattern.endswith(".tar") and not _is_folder_without_shards(pattern)
    return f"{pattern.rstrip('/')}/train-*.tar" if is_folder else pattern


def audio_files(folder: str) -> list[Path]:
    """The audio files in a folder and the folders in it, sorted by their paths."""
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower().lstrip(".") in EXTENSIONS and p.is_file())


class OfModel:
    """The clips that a model is evaluated with: shards, or the files of a folder, cropped at their start.

    Args:
        model: the model.
        reference: shards or a folder of audio; None for the shards held out of training.
        num_clips: number of clips, the first usable ones; None for all.
        batch_size: clips per batch.
        option: the option that names them, for messages.

    Raises:
        ConfigError: if there are none.
    """

    def __init__(
        self, model: Model, reference: str | None, num_clips: int | None, batch_size: int, option: str = "reference"
    ):
        self.model, self.num_clips, self.batch_size = model, num_clips, batch_size
        self._shards: Shards | None = None
        self._folder: Folder | None = None
        if reference is not None and _is_folder_without_shards(reference):
            self._folder = Folder(reference, option, model.sample_rate, model.channels)
            self.names = [reference]
            if model.conditions.fields:
                raise ConfigError(
                    f"{option}: this model's conditions are read from {', '.join(model.conditions.fields)}, which "
                    "files do not have: pack the folder first, and give the shards"
                )
        else:
            named = "data" if option == "reference" else option  # which data=SHARDS says too
            self.names = patterns(model, reference)
            self._shards = open_shards(model, self.names, named)

    def of_training(self, train: str | None, num_clips: int | None) -> Callable[[], Iterator[Clips]]:
        """The clips that the model was trained on, or of the given shards or folder.

        Raises:
            ConfigError: if there are none.
        """
        data = self.model.origin.data
        if train is None and (data is None or REDACTED in str(data.train)):
            raise ConfigError("train: the address of the training data is not known; give it: train=SHARDS")
        patterns = list(by_name(data.train).values()) if train is None and data else [str(train)]
        found = [
            OfModel(self.model, _training_shards(pattern), num_clips, self.batch_size, "train") for pattern in patterns
        ]
        return lambda: (clips for of_pattern in found for clips in of_pattern())

    def __call__(self) -> Iterator[Clips]:
        """Yields batches, with the conditions of the clips, on the model's device."""
        if self._folder is not None:
            yield from self._of_files(self._folder)
        if self._shards is None:
            return
        model = self.model
        fields, classes = model.conditions.fields, model.classes
        clips = read_in_order(self._shards, model.sample_rate, model.channels, model.num_samples, classes, fields)
        usable = islice(((clip, samples) for clip, samples in clips if clip.num_valid), self.num_clips)
        while chosen := list(islice(usable, self.batch_size)):
            audios, known = torch.stack([samples for _, samples in chosen]), [clip for clip, _ in chosen]
            batch = collate(audios, known, bool(classes), fields).to(model.device)
            cond = model.conditions.read({**batch.cond, "audio": batch.audio}, model.device)
            labels = [classes[clip.label] if clip.label >= 0 else None for clip in known]
            yield Clips(batch.audio, batch.mask, batch.keys, labels, batch.texts, cond)

    def _of_files(self, folder: "Folder") -> Iterator[Clips]:
        """Yields the files; the name of a file's folder is its label, if the model has such a class."""
        model = self.model
        for clips in folder(self.num_clips):
            missing = model.num_samples - clips.audio.shape[-1]
            audio, mask = (F.pad(x, (0, missing)).to(model.device) for x in (clips.audio, clips.mask))
            label = clips.labels[0] if clips.labels[0] in model.classes else None
            number = torch.tensor([model.classes.index(label) if label else -1], device=model.device)
            cond = model.conditions.read({"label": number, "audio": audio, **_UNKNOWN_TIMES}, model.device)
            yield Clips(audio, mask, clips.names, [label], cond=cond)


_UNKNOWN_TIMES = {name: torch.full((1,), torch.nan) for name in ("seconds_start", "seconds_total")}


class Folder:
    """The audio files of a folder, each read whole, as one batch.

    Args:
        path: the folder; all folders in it are searched.
        option: the option that names it, for messages.
        sample_rate: that the files are converted to; None for the rate of the first file that can be read.
        channels: that the files are converted to; None for the number of that file.

    Attributes:
        unusable: the reason by file, of the files read so far that could not be used.

    Raises:
        ConfigError: if there is no audio, or no file can be read.
    """

    def __init__(self, path: str, option: str, sample_rate: int | None = None, channels: int | None = None):
        self.path, self.files = Path(path), audio_files(path)
        if not self.files:
            kinds = ", ".join(EXTENSIONS)
            raise ConfigError(f"{option}: expected a folder with audio files ({kinds}), found none in {path!r}")
        info, reasons = None, []
        for file in self.files:
            try:
                info = probe(file)
                break
            except UnusableAudio as error:
                reasons.append(f"{file}: {error}")
        if info is None:
            others = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
            raise ConfigError(f"{option}: no file can be read: {reasons[0]}{others}")
        self.sample_rate, self.channels = sample_rate or info.sample_rate, channels or info.channels
        self.unusable: dict[str, str] = {}

    def __call__(self, num_clips: int | None) -> Iterator[Clips]:
        """Yields files, evenly spread over the list if not all are wanted, as batches of one.

        The label of a file is the name of the folder it is in.
        """
        count = min(num_clips or len(self.files), len(self.files))
        for file in (self.files[i * len(self.files) // count] for i in range(count)):
            try:
                audio = read_file(file, self.sample_rate, self.channels)[None]
            except UnusableAudio as error:
                self.unusable[str(file)] = str(error)
                continue
            name, label = file.relative_to(self.path).as_posix(), file.parent.name if file.parent != self.path else None
            yield Clips(audio, torch.ones(1, 1, audio.shape[-1], dtype=torch.bool), [name], [label])


def of_folder(reference: str | None, num_clips: int | None, folder: Folder, option: str) -> Iterator[Clips]:
    """Yields the clips that a folder is compared with, of its sample rate and channels, as batches of one.

    Args:
        reference: shards, of whose clips the first minute is read, or a folder of audio.
        num_clips: number of clips, the first usable ones; None for all.
        folder: the folder that is evaluated.
        option: the option that names the reference, for messages.

    Raises:
        ConfigError: if there are none.
    """
    if reference is None:
        raise ConfigError(f"{option}: expected shards or a folder of audio that folder is compared with, got nothing")
    if _is_folder_without_shards(reference):
        real = Folder(reference, option, folder.sample_rate, folder.channels)
        yield from real(num_clips)
        folder.unusable |= real.unusable
        return
    try:
        shards = Shards.open([reference])
    except (ValueError, RemoteError) as error:
        raise ConfigError(f"{option}: {error}") from error
    try:
        classes = read_classes([reference])
    except ValueError:
        classes = []  # without a manifest there are no names of classes
    clips = read_in_order(shards, folder.sample_rate, folder.channels, _SECONDS * folder.sample_rate, classes)
    for clip, audio in islice(((clip, audio) for clip, audio in clips if clip.num_valid), num_clips):
        own = audio[None, :, : clip.num_valid]
        label = classes[clip.label] if classes and clip.label >= 0 else None
        yield Clips(own, torch.ones(1, 1, own.shape[-1], dtype=torch.bool), [clip.key], [label])


_SECONDS = 60
