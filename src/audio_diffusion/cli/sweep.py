"""Measures generated clips with several samplers, numbers of steps and guidance scales."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audio_diffusion.cli.config import CONFIG_DIR, ConfigError, build, read_command_line, to_plain
from audio_diffusion.cli.own_parts import sampler_of
from audio_diffusion.inference.model import Model
from audio_diffusion.inference.targets import nearest
from audio_diffusion.metrics import charts, pictures
from audio_diffusion.metrics.metric import Clips, Figure, Metric


@dataclass(frozen=True)
class Setting:
    """One way to generate: the sampler's name and config node, and the guidance scale."""

    name: str
    node: dict[str, Any]
    guidance_scale: float

    @property
    def title(self) -> str:
        """The setting in words."""
        steps = self.node.get("num_steps")
        return f"{self.name}{'' if steps is None else f', {steps} steps'}, guidance {self.guidance_scale:g}"

    def of(self, model: Model) -> Model:
        """Returns the model with this sampler and guidance."""
        return model.using(sampler=build(self.node, "sampler"), guidance=self.guidance_scale)


@dataclass
class Row:
    """What was measured with one setting.

    Attributes:
        setting: how the clips were generated.
        network_calls: network evaluations per clip; guidance takes two where it is on.
        real_time_factor: seconds of audio generated in a second.
        figures: of all metrics.
    """

    setting: Setting
    network_calls: float
    real_time_factor: float
    figures: dict[str, Figure]

    def record(self) -> dict[str, Any]:
        """Returns the row as plain data."""
        return {
            "sampler": self.setting.name,
            "num_steps": self.setting.node.get("num_steps"),
            "guidance_scale": self.setting.guidance_scale,
            "network_calls": self.network_calls,
            "real_time_factor": self.real_time_factor,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
        }


def settings(model: Model, given: dict[str, Any] | None, sweep: dict[str, Any]) -> list[Setting]:
    """All combinations of the samplers, numbers of steps and guidance scales of a sweep; empty if there is no sweep.

    Args:
        model: the model.
        given: node of the sampler on the command line, for what is not swept.
        sweep: the lists by name; None for the value without a sweep.

    Raises:
        ConfigError: if a sampler is unknown, or has no number of steps.
    """
    if not any(sweep.values()):
        return []
    own = sampler_of(model.origin.nodes["sampler"], given)
    samplers = {name: read_sampler(name) for name in sweep["sampler"] or ()} or {_name(own): own}
    found = []
    for (name, node), num_steps, scale in itertools.product(
        samplers.items(),
        sweep["num_steps"] or [None],
        sweep["guidance_scale"] or [model.guidance.scale if model.guidance else model.guidance_scale],
    ):
        if num_steps is not None and "num_steps" not in node:
            raise ConfigError(f"sweep.num_steps: the sampler {name} has no number of steps")
        setting = Setting(name, node if num_steps is None else {**node, "num_steps": num_steps}, scale)
        build(setting.node, "sampler")
        found.append(setting)
    return found


def read_sampler(name: str) -> dict[str, Any]:
    """The config node of a sampler of the group ``sampler``, by its name.

    Raises:
        ConfigError: if there is none.
    """
    try:
        cfg, _ = read_command_line("evaluate", ["ckpt=", f"sampler={name}"])
    except ConfigError as error:
        names = [file.stem for file in (CONFIG_DIR / "sampler").glob("*.yaml")]
        raise ConfigError(f"sweep.sampler: there is no sampler {name!r}.{nearest(name, names)}") from error
    return to_plain(cfg)["sampler"]


def _name(node: dict[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


class Clock:
    """Yields generated clips while it measures how long they took, and how many network evaluations each took."""

    def __init__(self, net: nn.Module, sample_rate: int):
        self.net, self.sample_rate = net, sample_rate
        self.wall_s = self.audio_s = 0.0
        self.evaluations = self.clips = 0

    def __call__(self, batches: Iterator[Clips]) -> Iterator[Clips]:
        def count(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.evaluations += len(arguments[0])

        hook = self.net.register_forward_pre_hook(count)
        try:
            while True:
                start = time.perf_counter()
                clips = next(batches, None)
                if clips is None:
                    return
                if clips.audio.is_cuda:
                    torch.cuda.synchronize()
                self.wall_s += time.perf_counter() - start
                self.clips += len(clips)
                self.audio_s += clips.audio.shape[0] * clips.audio.shape[-1] / self.sample_rate
                yield clips
        finally:
            hook.remove()


def measure(
    model: Model,
    chosen: Sequence[Setting],
    metrics: dict[str, Metric],
    update: Callable[[Iterator[Clips]], bool],
    compute: Callable[[Setting], dict[str, Figure] | None],
    generate: Callable[[Model], Iterator[Clips]],
) -> list[Row]:
    """Measures every setting.

    Args:
        model: the model.
        chosen: the settings.
        metrics: those that compare generated clips, which have seen the real ones.
        update: updates the metrics with all clips; returns whether it was interrupted.
        compute: returns all figures of a setting; None if it was interrupted.
        generate: yields the clips of a model.

    Returns:
        A row for each setting that was finished.
    """
    rows: list[Row] = []
    for setting in chosen:
        for metric in metrics.values():
            metric.forget_generated()
        clock = Clock(model.net, model.sample_rate)
        if update(clock(generate(setting.of(model)))):
            break
        figures = compute(setting)
        if figures is None:
            break
        rows.append(Row(setting, clock.evaluations / clock.clips, clock.audio_s / clock.wall_s, figures))
    return rows


def table(rows: Sequence[Row], most: int = 4) -> list[str]:
    """The printed table; of the figures the first ones, all are in ``evaluation.json``."""
    names = list(rows[0].figures)[:most]
    lines = [
        f"{'sampler':14}{'steps':>7}{'guidance':>10}{'calls':>8}{'x real time':>13}"
        + "".join(f"{n:>26}" for n in names)
    ]
    for row in rows:
        steps = row.setting.node.get("num_steps")
        cells = [
            f"{row.setting.name:14}{'-' if steps is None else steps:>7}{row.setting.guidance_scale:>10g}",
            f"{row.network_calls:>8.4g}{row.real_time_factor:>13.3g}",
        ]
        lines.append("".join(cells) + "".join(f"{_short(row.figures.get(name)):>26}" for name in names))
    return lines


def _short(figure: Figure | None) -> str:
    if figure is None or math.isnan(figure.value):
        return "-"
    interval = "" if figure.interval is None else f" [{figure.interval[0]:.3g}, {figure.interval[1]:.3g}]"
    return f"{figure.value:.3g}{interval}"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Draws the first figure that is known, and the real-time factor, against network calls."""
    known = [name for name in rows[0].figures if any(math.isfinite(row.figures[name].value) for row in rows)]
    curves: dict[str, list[tuple[float, float, tuple[float, float] | None, float]]] = {}
    scales = {row.setting.guidance_scale for row in rows}
    for row in rows if known else ():
        name = row.setting.name + (f", guidance {row.setting.guidance_scale:g}" if len(scales) > 1 else "")
        figure = row.figures[known[0]]
        curves.setdefault(name, []).append((row.network_calls, figure.value, figure.interval, row.real_time_factor))
    return pictures.save(charts.quality_against_calls(known[0] if known else "", curves), path)
