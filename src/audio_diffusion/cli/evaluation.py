"""One measurement of a model or of a folder of audio: metrics, and the clips that they are updated with."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from audio_diffusion.cli import sweep
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.heard import Heard
from audio_diffusion.cli.interruption import CtrlC
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.inference.generating import generate_audio
from audio_diffusion.inference.model import Model
from audio_diffusion.metrics.metric import SOURCES, Clips, EvaluatedModel, Figure, Metric, Subject, check_metric


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
            audio = generate_audio(
                model.net,
                model.process,
                model.sampler,
                model.representation,
                (model.channels, model.num_samples),
                [seed_of(seed, "generated", name) for name in names],
                cond,
                guidance,
                model.device,
            )
            mask = torch.ones(len(audio), 1, audio.shape[-1], dtype=torch.bool, device=audio.device)
            yield Clips(audio, mask, names, clips.labels[: len(names)], clips.texts[: len(names)], cond)
            made += len(names)
            if made == count:
                return


@dataclass
class Evaluation:
    """A measurement that Ctrl-C ends early; the figures are then those of the finished part.

    Attributes:
        metrics: by name.
        counts: number of clips measured, by source.
        interrupted: whether Ctrl-C was received.
        rows: of a sweep, one for each setting.
        kept: names of metrics that have the real and the training clips already, from an earlier model.
        heard: clips to listen to.
        sample_rate: of all clips, Hz.
    """

    metrics: dict[str, Metric]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    interrupted: bool = False
    rows: list[sweep.Row] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    heard: Heard = field(default_factory=Heard)
    sample_rate: int = 0

    def begin(self, subject: Subject) -> None:
        """Starts the metrics; for another model with the same clips, those that compare generated clips keep the real
        ones.

        Raises:
            ConfigError: if one cannot measure the subject.
        """
        is_first, self.sample_rate = not any(self.counts.values()), subject.sample_rate
        for name, metric in self.metrics.items():
            if not is_first and "generated" in metric.needs:
                metric.forget_generated()
                self.kept.add(name)
                continue
            try:
                metric.start(subject)
            except ValueError as error:
                raise ConfigError(f"metrics.{name}: {error}") from error

    def of(self, source: str) -> dict[str, Metric]:
        """The metrics that need clips of a source."""
        return {name: metric for name, metric in self.metrics.items() if source in metric.needs}

    def update(self, source: str, batches: Iterable[Clips], total: int | None = None) -> None:
        """Updates the metrics that need it with all batches of a source, unless it was interrupted before."""
        kept = self.kept if source != "generated" else set()
        metrics = {name: metric for name, metric in self.of(source).items() if name not in kept}
        if self.interrupted or not metrics:
            return
        self.counts[source] = 0
        self.heard.begin(source)
        with CtrlC() as ctrl_c, tqdm(desc=f"{source}: {' '.join(metrics)}", unit="clip", total=total) as bar:
            for clips in batches:
                for metric in metrics.values():
                    metric.update(clips, source)
                if source != "train":
                    self.heard.add(clips, source)
                with ctrl_c.held():
                    self.counts[source] += len(clips)
                    bar.update(len(clips))
        self.interrupted = ctrl_c.received

    def compute(self, names: Iterable[str] | None = None) -> dict[str, dict[str, Figure]]:
        """The figures of the metrics of these names, None for all; Ctrl-C leaves out those that are not finished."""
        found: dict[str, dict[str, Figure]] = {}
        with CtrlC() as ctrl_c:
            for name in self.metrics if names is None else names:
                found[name] = self.metrics[name].compute()
        self.interrupted |= ctrl_c.received
        return found

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
            self.update("generated", clips, wanted)
            return self.interrupted

        names = list(self.of("generated"))

        def compute(setting: sweep.Setting) -> dict[str, Figure] | None:
            self.heard.rename("generated", setting.title)
            figures = self.compute(names)
            return None if self.interrupted else {key: figure for of in figures.values() for key, figure in of.items()}

        self.rows = sweep.measure(model, settings, self.of("generated"), update, compute, generate)
