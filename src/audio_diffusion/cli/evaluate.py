"""How good is a model? Checkpoint + held-out shards -> figures, a table and pictures. Needs no Trainer and no W&B.

python evaluate.py ckpt=runs/quickstart
python evaluate.py ckpt=step_00010000.ckpt data='shards/test-*.tar' num_clips=null metrics.likelihood.flow=null
python evaluate.py ckpt=runs/quickstart 'metrics=[likelihood,kad]'
python evaluate.py ckpt=runs/averaged 'ema_lengths=[0.03,0.1]' 'metrics=[kad]'
python evaluate.py folder=generated reference=recordings 'metrics=[kad]'
"""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from audio_diffusion.callbacks.page.page import write_evaluation_page
from audio_diffusion.checkpoints.redaction import redacted
from audio_diffusion.cli import reference, sweep
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.evaluation import Evaluation, build_metrics, generated_like, subject_of
from audio_diffusion.cli.interruption import end
from audio_diffusion.cli.options import EvaluateOptions
from audio_diffusion.cli.output import default_folder, writable
from audio_diffusion.cli.own_parts import sampler_of
from audio_diffusion.data.wording import counted
from audio_diffusion.inference import averages, checkpoint_reader
from audio_diffusion.inference.checkpoint_reader import Weights, device_of
from audio_diffusion.inference.loading import load
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import nearest
from audio_diffusion.metrics.metric import Figure, Metric, Subject


class Result(NamedTuple):
    """A finished measurement.

    Attributes:
        evaluation: the metrics.
        about: description of the measurement for ``evaluation.json``.
        output: the folder of the results, which exists.
    """

    evaluation: Evaluation
    about: dict[str, Any]
    output: Path


def evaluate_model(options: EvaluateOptions, metrics: dict[str, Metric]) -> Result:
    """Measures the model of a checkpoint."""
    assert options.ckpt is not None
    device = device_of(options.device)
    return measured(
        load(options.ckpt, weights=options.weights, device=device, trust=options.trust), options, Evaluation(metrics)
    )


def measured(model: Model, options: EvaluateOptions, evaluation: Evaluation) -> Result:
    """Measures a model; ``evaluation`` may have measured another one with the same clips before."""
    assert options.ckpt is not None
    node = sampler_of(model.origin.nodes["sampler"], options.sampler) if options.sampler else None
    model = model.using(sampler=build(node, "sampler") if node else None, guidance=options.guidance_scale)
    settings = sweep.settings(model, options.sampler, options.sweep)
    evaluation.begin(subject_of(model, options.seed))
    real = reference.OfModel(model, options.reference, options.num_clips, options.batch_size)
    training = real.of_training(options.train, options.num_train) if evaluation.of("train") else None
    output = writable(options.output, default_folder(model, options.ckpt, "evaluation"))
    print(f"{model.source}: step {model.step}, {model.weights.upper()} weights, on {model.device}")

    evaluation.update("real", real())
    if evaluation.of("real") and not evaluation.counts["real"] and not evaluation.interrupted:
        raise ConfigError("data: none of the clips can be used")
    if training is not None:
        evaluation.update("train", training())
    wanted = options.num_generated or evaluation.counts["real"] or 64
    if settings:
        evaluation.sweep(model, settings, lambda other: generated_like(other, real, wanted, options.seed), wanted)
    else:
        evaluation.update("generated", generated_like(model, real, wanted, options.seed), wanted)
    about = {"ckpt": str(model.source), "step": model.step, "weights": model.weights, "data": redacted(real.names)}
    return Result(evaluation, about, output)


def evaluate_lengths(options: EvaluateOptions, metrics: dict[str, Metric]) -> Result:
    """Measures averages of several lengths, and writes the best one as a checkpoint.

    Returns:
        The measurement of the last length; its ``about`` has the figures of all.

    Raises:
        ConfigError: if the run has no snapshots, or a figure that is to decide is unknown.
    """
    assert options.ckpt is not None
    rows: list[dict[str, Any]] = []
    best: tuple[float, Weights] | None = None
    lengths, evaluation = options.ema_lengths or [], Evaluation(metrics)
    for length, weights in zip(lengths, averages.rebuild_weights(options.ckpt, lengths), strict=True):
        model = checkpoint_reader.assemble(weights, device_of(options.device), options.trust)
        result = measured(model, options, evaluation)
        figures = {key: figure for of in evaluation.compute().values() for key, figure in of.items()}
        if evaluation.interrupted:
            break
        name = options.ema_monitor or next(iter(figures))
        if name not in figures:
            raise ConfigError(f"ema_monitor: there is no figure {name!r}.{nearest(name, list(figures))}")
        rows.append({"length": length, "figures": {key: asdict(figure) for key, figure in figures.items()}})
        print(f"length {length:g}: {name} {figures[name]}")
        if math.isfinite(figures[name].value) and (best is None or figures[name].value < best[0]):
            best = figures[name].value, weights
    result.about["ema_lengths"] = rows
    if best is not None:
        path = averages.write_checkpoint(best[1], Path(options.ckpt, "best_average"))
        result.about["best"] = {"weights": best[1].kind, "ckpt": str(path)}
        print(f"least {name}: {best[1].kind}, saved: {path}")
    return result


def evaluate_folder(options: EvaluateOptions, metrics: dict[str, Metric]) -> Result:
    """Measures a folder of audio against a reference."""
    assert options.folder is not None
    folder = reference.Folder(options.folder, "folder")
    evaluation, path = Evaluation(metrics), folder.path.resolve()
    evaluation.begin(Subject(folder.sample_rate, folder.channels, seed=options.seed))
    if options.train is None and (names := list(evaluation.of("train"))):
        raise ConfigError(f"train: {', '.join(names)} needs training clips: train=SHARDS or a folder of audio")
    output = writable(options.output, path.parent / f"{path.name}_evaluation")
    if unused := [name for name, default in _OF_MODELS.items() if getattr(options, name) != default]:
        print(f"not used with folder={options.folder}, which has no model: {', '.join(unused)}")
    channels = {1: "mono", 2: "stereo"}.get(folder.channels, f"{folder.channels} channels")
    print(
        f"{folder.path}: {counted(len(folder.files), 'file')}; all clips, also the real ones, are read at "
        f"{folder.sample_rate} Hz {channels}, as its first readable file"
    )

    sources = {
        "real": reference.of_folder(options.reference, options.num_clips, folder, "reference"),
        "train": reference.of_folder(options.train, options.num_train, folder, "train"),
        "generated": folder(options.num_generated),
    }
    for source, clips in sources.items():
        evaluation.update(source, clips)
    for file, reason in folder.unusable.items():
        print(f"left out: {file}: {reason}")
    for source, option in (("real", "reference"), ("train", "train"), ("generated", "folder")):
        if evaluation.of(source) and not evaluation.counts[source] and not evaluation.interrupted:
            raise ConfigError(f"{option}: none of the clips can be used")
    return Result(evaluation, {"folder": str(folder.path), "data": redacted([options.reference])}, output)


#: options that only a model has, and their defaults in configs/evaluate.yaml
_OF_MODELS: dict[str, Any] = {
    "device": "auto", "weights": "ema", "trust": [], "batch_size": 16, "guidance_scale": None, "sampler": None,
}  # fmt: skip


def record(
    evaluation: Evaluation, figures: Mapping[str, Mapping[str, Figure]], about: dict[str, Any], path: Path
) -> None:
    """Writes ``evaluation.json``, with the figures of these metrics."""
    measured: dict[str, Any] = {}
    for name, found in figures.items():
        measured[name] = {"figures": {key: asdict(figure) for key, figure in found.items()}}
        measured[name] |= evaluation.metrics[name].details()
    result = {**about, "clips": evaluation.counts, "interrupted": evaluation.interrupted, "metrics": measured}
    if evaluation.rows:
        result["sweep"] = [row.record() for row in evaluation.rows]
    path.write_text(json.dumps(_without_nan(result), indent=1), encoding="utf-8")


def _without_nan(value: Any) -> Any:
    """Replaces NaN and infinity, which json does not support, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page_of(output: Path) -> str:
    """Writes the page of an evaluation; returns what to print about it, empty if it cannot be written."""
    try:
        path, notes = write_evaluation_page(output)
    except (ValueError, OSError) as error:
        print(f"no page is written: {error}")
        return ""
    for note in notes:
        print(f"{path}: {note}")
    return f"   to listen: {path}"


def main(options: EvaluateOptions) -> None:
    """Measures a model or a folder of audio; prints and writes the figures."""
    metrics = build_metrics(options.metrics or {})  # before any data are read
    evaluate = evaluate_folder if options.folder else evaluate_lengths if options.ema_lengths else evaluate_model
    evaluation, about, output = evaluate(options, metrics)
    swept = set(evaluation.of("generated")) if evaluation.rows else set()  # these hold the last setting's clips alone
    figures = evaluation.compute([name for name in metrics if name not in swept])
    if not any(evaluation.counts.values()) or not (figures or evaluation.rows):
        with contextlib.suppress(OSError):  # not empty
            output.rmdir()
        if any(evaluation.counts.values()):
            end("the clips were read, but no figure was finished, so nothing is written")
        end("no batch was finished, so there are no figures; a smaller batch_size or num_clips is finished sooner")

    sounds = evaluation.heard.write(output, evaluation.sample_rate)
    record(evaluation, figures, {**about, "seed": options.seed, "sounds": sounds}, output / "evaluation.json")
    for name in figures:
        print(*metrics[name].describe(), sep="\n")
    if evaluation.rows:
        print(*sweep.table(evaluation.rows), sep="\n")
        print(f"quality against network calls: {sweep.draw(evaluation.rows, output / 'sweep.png')}")
    for what, picture in [item for name in figures for item in metrics[name].draw(output).items()]:
        print(f"{what}: {picture}")
    print(f"all figures: {output}/evaluation.json{page_of(output)}")
    if evaluation.interrupted:
        finished = counted(sum(evaluation.counts.values()), "clip")
        missing = ", ".join(name for name in metrics if name not in figures and name not in swept)
        left_out = f"; those of {missing} were not finished" if missing else ""
        end(f"the figures are of the {finished} that were finished{left_out}; kept in {output}/")
