"""The contract of a task of sample.py, and how a task is found by name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from audio_diffusion.cli.inputs import find_files, read_clip
from audio_diffusion.cli.samples import Input, Result, Sample, together
from audio_diffusion.data.audio.reading import PACKED
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import ConfigError, check_types, load_object


@dataclass(frozen=True)
class Task(ABC):
    """A task of sample.py. Its fields are its options, which configs/task/NAME.yaml lists with their defaults.

    ``task=NAME`` is the class ``Name`` of the module ``audio_diffusion.cli.tasks.NAME``; a task of another package is
    named by its dotted path (``task: my_package.Reverse`` in the YAML).
    """

    exceeds_full_scale: ClassVar[bool] = False  # if so, files are written as floats

    @abstractmethod
    def perform(self, model: Model, batch: Sequence[Sample]) -> list[Result]:
        """Generates the results of a batch of samples, whose clips have one length; ``arguments_of`` returns the seeds
        and conditions that the methods of ``model`` take.

        Raises:
            ValueError: for options that the task or the model does not have.
        """

    def read(self, model: Model, given: str | Sequence[str]) -> list[tuple[Input, ...]]:
        """Reads the files of the option ``input``; returns the files of each sample, by default one each."""
        return [(read_clip(model, path),) for path in find_files(given, PACKED)]

    def num_samples(self, model: Model, inputs: Sequence[tuple[Input, ...]]) -> int:
        """Returns the length in samples to which conditions read from audio files are cut or padded."""
        return inputs[0][0].clip.shape[1] if inputs else model.num_samples

    def regenerated(self, seconds: float) -> list[tuple[float, float]]:
        """Returns the generated regions of a result, (start, end) in seconds, for an input of ``seconds``; empty if the
        task changes the whole clip."""
        return []

    def notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Returns lines to print at the end, from the records of all files."""
        return []


def arguments_of(batch: Sequence[Sample]) -> dict[str, Any]:
    """Returns the seeds, labels and conditions of a batch as arguments of a model's methods."""
    labels = [sample.label for sample in batch if sample.label is not None] or None
    cond = together([sample.cond for sample in batch])
    return {"seeds": [sample.seed for sample in batch], "labels": labels, "cond": cond}


def clips_of(batch: Sequence[Sample]) -> Tensor:
    """Returns the first input clip of each sample, ``[B, C, T]``."""
    return torch.stack([sample.files[0].clip for sample in batch])


def make_task(name: str, options: dict[str, Any]) -> Task:
    """Builds a task by its name, with its options.

    Raises:
        ConfigError: if there is no such task, or for an option of the wrong type.
    """
    own = f"{__package__}.{name}.{''.join(word.title() for word in name.split('_'))}"
    kind = load_object(name if "." in name else own)
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise ConfigError(f"task: expected a subclass of {__name__}.Task, got {name}")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    if missing := [name for name in names if name not in options]:
        raise ConfigError(f"task={name}: its YAML lacks the options {', '.join(missing)}")
    check_types(options, {name: hints[name] for name in names})
    return kind(**{name: options[name] for name in names})
