"""The tasks of sample.py by name, each a method of the generator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from audio_diffusion.cli.requests import Sample, together
from audio_diffusion.cli.results import Result, to_cpu
from audio_diffusion.inference.model import Model

Options = dict[str, Any]
#: tasks with one input file per result: (model, clips [B, C, T], options of the task, common arguments) -> clips
_EDITS: dict[str, Callable[[Model, Tensor, Options, Options], Tensor]] = {
    "inpaint": lambda model, audio, o, given: model.inpaint(audio, o["regions"], **given),
    "outpaint": lambda model, audio, o, given: model.outpaint(audio, before=o["before"], after=o["after"], **given),
    "continue": lambda model, audio, o, given: model.continue_(audio, o["seconds"], **given),
    "vary": lambda model, audio, o, given: model.vary(audio, o["strength"], **given),
    "extend_bandwidth": lambda model, audio, o, given: model.extend_bandwidth(audio, o["cutoff"], **given),
    "declip": lambda model, audio, o, given: model.declip(audio, **given),
    "denoise": lambda model, audio, o, given: model.denoise(audio, snr_db=o["snr_db"], mean=o["mean"], **given),
    "vocode": lambda model, audio, o, given: model.vocode(audio, **given),
}


def perform(model: Model, options: Options, batch: Sequence[Sample]) -> list[Result]:
    """Generates the results of a batch of samples.

    Raises:
        ValueError: for options that the task or the model does not take.
    """
    task = options["task"]
    labels = [sample.label for sample in batch if sample.label is not None] or None
    given: Options = {"labels": labels, "cond": together([sample.cond for sample in batch])}
    seeded: Options = {"seeds": [sample.seed for sample in batch], **given}
    if task == "generate":
        return [Result([clip]) for clip in to_cpu(model.generate(seconds=options["seconds"], **seeded))]
    if task == "process":
        points = model.reverse_process(seconds=options["seconds"], num_points=options["num_points"], **seeded)
        names = [f"_{i:02d}_t{t:.3f}" for i, (t, _) in enumerate(points)]
        return [Result(list(clips), names) for clips in zip(*(to_cpu(audio) for _, audio in points), strict=True)]
    audio = [torch.stack([sample.files[i].clip for sample in batch]) for i in range(len(batch[0].files))]
    if task == "interpolate":
        made = model.interpolate(
            audio[0], audio[1], options["at"], strength=options["strength"], num_steps=options["num_steps"], **given
        )
        names = [f"_{place:.3f}" for place in options["at"]]
        return [
            Result(to_cpu(clips), names, {"round_trip_error_db": [round(db, 1) for db in error.tolist()]})
            for clips, error in zip(made.clips, made.error_db, strict=True)
        ]
    if task == "declip":  # the mask comes from the files at their own sample rate
        seeded["clipped"] = torch.stack([sample.files[0].clipped for sample in batch])  # type: ignore[misc]
    return [Result([clip]) for clip in to_cpu(_EDITS[task](model, audio[0], options, seeded))]
