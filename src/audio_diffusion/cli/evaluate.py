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
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from audio_diffusion.checkpoints.redaction import redacted
from audio_diffusion.cli import reference, sweep
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.evaluation import Evaluation, begin, build_metrics, generated_like, subject_of
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
from audio_diffusion.metrics.metric import Metric, Subject


class Result(NamedTuple):
    """A finished measurement.

    Attributes:
        evaluation: the metrics.
        about: what ``evaluation.json`` says of what was measured.
        output: the folder of the results, which exists.
    """

    evaluation: Evaluation
    about: dict[str, Any]
    output: Path


def evaluate_model(options: EvaluateOptions, metrics: dict[str, Metric]) -> Result:
    """Measures the model of a checkpoint."""
    assert options.ckpt is not None
    device = device_of(options.device)
    return measured(load(options.ckpt, weights=options.weights, device=device, trust=options.trust), options, metrics)


def measured(model: Model, options: EvaluateOptions, metrics: dict[str, Metric]) -> Result:
    """Measures a model."""
    assert options.ckpt is not None
    node = sampler_of(model.origin.nodes["sampler"], options.sampler) if options.sampler else None
    model = model.using(sampler=build(node, "sampler") if node else None, guidance=options.guidance_scale)
    settings = sweep.settings(model, options.sampler, options.sweep)
    begin(metrics, subject_of(model, options.seed))
    real = reference.OfModel(model, options.reference, options.num_clips, options.batch_size)
    evaluation = Evaluation(metrics)
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
    for length in options.ema_lengths or ():
        weights = averages.rebuild_weights(options.ckpt, length)
        model = checkpoint_reader.assemble(weights, device_of(options.device), options.trust)
        result = measured(model, options, metrics)
        if result.evaluation.interrupted:
            break
        figures = {key: figure for metric in metrics.values() for key, figure in metric.compute().items()}
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
    begin(metrics, Subject(folder.sample_rate, folder.channels, seed=options.seed))
    evaluation, path = Evaluation(metrics), folder.path.resolve()
    if options.train is None and (names := list(evaluation.of("train"))):
        raise ConfigError(f"train: {', '.join(names)} needs training clips: train=SHARDS or a folder of audio")
    output = writable(options.output, path.parent / f"{path.name}_evaluation")
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


def record(evaluation: Evaluation, about: dict[str, Any], path: Path) -> None:
    """Writes ``evaluation.json``."""
    measured: dict[str, Any] = {}
    for name, metric in evaluation.metrics.items():
        if evaluation.rows and "generated" in metric.needs:
            continue  # its figures are in the rows of the sweep
        measured[name] = {"figures": {key: asdict(figure) for key, figure in metric.compute().items()}}
        measured[name] |= metric.details()
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


def main(options: EvaluateOptions) -> None:
    """Measures a model or a folder of audio; prints and writes the figures."""
    metrics = build_metrics(options.metrics or {})  # before any data are read
    evaluate = evaluate_folder if options.folder else evaluate_lengths if options.ema_lengths else evaluate_model
    evaluation, about, output = evaluate(options, metrics)
    if not any(evaluation.counts.values()):
        with contextlib.suppress(OSError):  # not empty
            output.rmdir()
        end("no batch was finished, so there are no figures; a smaller batch_size or num_clips is finished sooner")

    record(evaluation, {**about, "seed": options.seed}, output / "evaluation.json")
    swept = evaluation.of("generated") if evaluation.rows else {}  # these hold the clips of the last setting alone
    for name, metric in metrics.items():
        if name not in swept:
            print(*metric.describe(), sep="\n")
    if evaluation.rows:
        print(*sweep.table(evaluation.rows), sep="\n")
        print(f"quality against network calls: {sweep.draw(evaluation.rows, output / 'sweep.png')}")
    for what, picture in [
        item for name, metric in metrics.items() if name not in swept for item in metric.draw(output).items()
    ]:
        print(f"{what}: {picture}")
    print(f"all figures: {output}/evaluation.json")
    if evaluation.interrupted:
        finished = counted(sum(evaluation.counts.values()), "clip")
        end(f"the figures are of the {finished} that were finished; kept in {output}/")
