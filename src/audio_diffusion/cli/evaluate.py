"""How good is a model? Checkpoint + held-out shards -> figures, a table and pictures. Needs no Trainer and no W&B.

python evaluate.py ckpt=runs/quickstart
python evaluate.py ckpt=step_00010000.ckpt data='shards/test-*.tar' num_clips=null metrics.likelihood.flow=null
python evaluate.py ckpt=runs/quickstart 'metrics=[likelihood,kad]'
python evaluate.py folder=generated reference=recordings 'metrics=[kad]'
"""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from audio_diffusion.checkpoints.redaction import redacted
from audio_diffusion.cli import reference, sweep
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.interruption import CtrlC, end
from audio_diffusion.cli.options import EvaluateOptions
from audio_diffusion.cli.output import default_folder, writable
from audio_diffusion.cli.own_parts import sampler_of
from audio_diffusion.data.wording import counted
from audio_diffusion.diffusion.generation import generate
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.inference.checkpoint_reader import device_of
from audio_diffusion.inference.loading import load
from audio_diffusion.inference.model import Model
from audio_diffusion.metrics.metric import SOURCES, Clips, EvaluatedModel, Metric, Subject, check_metric


def build_metrics(nodes: dict[str, Any]) -> dict[str, Metric]:
    """Builds the chosen metrics, by name.

    Raises:
        ConfigError: if there is none, or one cannot be built or is no ``Metric``.
    """
    metrics: dict[str, Metric] = {}
    for name, node in nodes.items():
        if node:
            metrics[name] = build(node, f"metrics.{name}")
            try:
                check_metric(metrics[name])
            except ValueError as error:
                raise ConfigError(f"metrics.{name}: {error}") from error
    if not metrics:
        raise ConfigError("metrics: expected at least one, such as metrics=[likelihood], got none")
    return metrics


def begin(metrics: dict[str, Metric], subject: Subject) -> None:
    """Starts the metrics.

    Raises:
        ConfigError: if one cannot measure the subject.
    """
    for name, metric in metrics.items():
        try:
            metric.start(subject)
        except ValueError as error:
            raise ConfigError(f"metrics.{name}: {error}") from error


def subject_of(model: Model, seed: int) -> Subject:
    """The parts of a model that metrics use."""
    parts = EvaluatedModel(
        lambda cond: model.process.denoiser(model.net, cond), model.process.schedule, model.representation
    )
    return Subject(model.sample_rate, model.channels, model.classes, seed, parts)


def generated_like(model: Model, real: Callable[[], Iterator[Clips]], count: int, seed: int) -> Iterator[Clips]:
    """Generates clips with the conditions of the real ones, taken in turn.

    Args:
        model: the model.
        real: yields the real clips from the first.
        count: number of clips to generate.
        seed: the noise of a clip follows from it, the name of the real clip and how often that was taken before.
    """
    guidance, made = model.guidance or Guidance(model.guidance_scale), 0
    for again in itertools.count():
        for clips in real():
            names = [f"{name}_{again}" for name in clips.names][: count - made]
            cond = {name: value[: len(names)] for name, value in clips.cond.items()}
            x0 = generate(
                model.net,
                model.process,
                model.sampler,
                model.representation.shape(model.channels, model.num_samples),
                [seed_of(seed, "generated", name) for name in names],
                cond,
                guidance=guidance if cond else replace(guidance, scale=1.0),
                device=model.device,
            )
            audio = model.representation.decode(x0)[..., : model.num_samples]
            mask = torch.ones(len(audio), 1, audio.shape[-1], dtype=torch.bool, device=audio.device)
            yield Clips(audio, mask, names, clips.labels[: len(names)], clips.texts[: len(names)], cond)
            made += len(names)
            if made == count:
                return


@dataclass
class Evaluation:
    """A measurement that Ctrl-C ends early, with the figures of what is finished.

    Attributes:
        metrics: by name.
        counts: number of clips measured, by source.
        interrupted: whether Ctrl-C was received.
        rows: of a sweep, one for each setting.
    """

    metrics: dict[str, Metric]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    interrupted: bool = False
    rows: list[sweep.Row] = field(default_factory=list)

    def of(self, source: str) -> dict[str, Metric]:
        """The metrics that need clips of a source."""
        return {name: metric for name, metric in self.metrics.items() if source in metric.needs}

    def update(self, source: str, batches: Iterable[Clips], total: int | None = None) -> None:
        """Updates the metrics that need it with all batches of a source, unless it was interrupted before."""
        metrics = self.of(source)
        if self.interrupted or not metrics:
            return
        with CtrlC() as ctrl_c, tqdm(desc=f"{source}: {' '.join(metrics)}", unit="clip", total=total) as bar:
            for clips in batches:
                for metric in metrics.values():
                    metric.update(clips, source)
                with ctrl_c.held():
                    self.counts[source] += len(clips)
                    bar.update(len(clips))
        self.interrupted = ctrl_c.received

    def sweep(
        self, model: Model, settings: list[sweep.Setting], generate: Callable[[Model], Iterator[Clips]], wanted: int
    ) -> None:
        """Measures generated clips with each setting.

        Raises:
            ConfigError: if no metric compares generated clips.
        """
        if not self.of("generated"):
            raise ConfigError("sweep: expected a metric that compares generated clips, such as metrics=[kad]")

        def update(clips: Iterator[Clips]) -> bool:
            self.counts["generated"] = 0
            self.update("generated", clips, wanted)
            return self.interrupted

        self.rows = sweep.measure(model, settings, self.of("generated"), update, generate)


def evaluate_model(options: EvaluateOptions, metrics: dict[str, Metric]) -> tuple[Evaluation, dict[str, Any], Path]:
    """Measures a model.

    Returns:
        The measurement, what ``evaluation.json`` says of the model, and the folder of the results, which exists.
    """
    assert options.ckpt is not None
    device = device_of(options.device)
    model = load(options.ckpt, weights=options.weights, device=device, trust=options.trust)
    node = sampler_of(model.origin.nodes["sampler"], options.sampler) if options.sampler else None
    model = model.using(sampler=build(node, "sampler") if node else None, guidance=options.guidance_scale)
    settings = sweep.settings(model, options.sampler, options.sweep)
    begin(metrics, subject_of(model, options.seed))
    real = reference.OfModel(model, options.reference, options.num_clips, options.batch_size)
    evaluation = Evaluation(metrics)
    training = real.of_training(options.train, options.num_train) if evaluation.of("train") else None
    output = writable(options.output, default_folder(model, options.ckpt, "evaluation"))
    print(f"{model.source}: step {model.step}, {model.weights.upper()} weights, on {device}")

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
    return evaluation, about, output


def evaluate_folder(options: EvaluateOptions, metrics: dict[str, Metric]) -> tuple[Evaluation, dict[str, Any], Path]:
    """Measures a folder of audio against a reference; returns the same as ``evaluate_model``."""
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
    return evaluation, {"folder": str(folder.path), "data": redacted([options.reference])}, output


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
    evaluate = evaluate_folder if options.folder else evaluate_model
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
