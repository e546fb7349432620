"""The likelihood of held-out clips as a metric: bits per dimension by the variational bound and by the flow."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audio_diffusion.metrics import charts, pictures
from audio_diffusion.metrics.bits import (
    BoundMeter,
    ClipBounds,
    Estimate,
    FlowMeter,
    count_dims,
    estimate,
    value_counts,
    white_gaussian,
)
from audio_diffusion.metrics.coding import coded_samples
from audio_diffusion.metrics.flow import Flow
from audio_diffusion.metrics.metric import Clips, EvaluatedModel, Figure, Metric, Subject

NAMES = {"bound": "variational bound", "flow": "probability-flow ODE"}


class BitsPerDim(Metric):
    """Bits per dimension of real clips under a model; the noise of a clip depends on the seed and its name alone.

    Args:
        bound: measures the variational bound; None leaves it out.
        flow: measures the likelihood under the probability-flow ODE; None leaves it out.

    Raises:
        ValueError: if both are None.
    """

    needs = ("real",)

    def __init__(self, bound: BoundMeter | None, flow: FlowMeter | None):
        if bound is None and flow is None:
            raise ValueError("bound, flow: both are null, which leaves nothing to measure")
        self.bound, self.flow = bound, flow
        self._model: EvaluatedModel | None = None
        self._seed = 0
        self._found: list[tuple[Tensor, Tensor, ClipBounds | None, Flow | None]] = []

    def start(self, subject: Subject) -> None:
        if subject.model is None:
            raise ValueError("expected a model, ckpt=RUN; a folder of audio has no likelihood")
        if not subject.model.representation.exact:
            name = type(subject.model.representation).__name__
            raise ValueError(f"expected a model with an exact representation, which {name} is not")
        self._model, self._seed, self._found = subject.model, subject.seed, []

    def update(self, clips: Clips, source: str) -> None:
        assert self._model is not None, "start comes first"
        model = self._model
        measured = (
            model.denoiser(clips.cond),
            model.schedule,
            clips.audio,
            clips.mask,
            model.representation,
            [(self._seed, name) for name in clips.names],
        )
        by_bound = self.bound(*measured) if self.bound else None
        by_flow = self.flow(*measured) if self.flow else None
        dims = count_dims(clips.audio, coded_samples(model.representation, clips.mask))
        self._found.append((dims, value_counts(clips.audio, clips.mask), by_bound, by_flow))

    @property
    def _bounds(self) -> ClipBounds | None:
        found = [by_bound for _, _, by_bound, _ in self._found if by_bound is not None]
        return ClipBounds.join(found) if found else None

    @property
    def _counts(self) -> Tensor:
        return torch.stack([counts for _, counts, _, _ in self._found]).sum(0)

    def _estimates(self) -> dict[str, Estimate]:
        """The estimates of both kinds."""
        found: dict[str, Estimate] = {}
        if bounds := self._bounds:
            found["bound"] = bounds.estimate()
        if flows := [by_flow.nats for _, _, _, by_flow in self._found if by_flow is not None]:
            found["flow"] = estimate(torch.cat(flows), torch.cat([dims for dims, _, _, _ in self._found]))
        return found

    def compute(self) -> dict[str, Figure]:
        names = {"bound": "bits_per_dim", "flow": "bits_per_dim_flow"}
        return {
            names[kind]: Figure(value.bits_per_dim, value.standard_error) for kind, value in self._estimates().items()
        }

    def details(self) -> dict[str, Any]:
        counts = self._counts
        results: dict[str, Any] = {
            "clips": sum(len(dims) for dims, _, _, _ in self._found),
            "dimensions": int(counts.sum()),
            "white_gaussian": {"bits_per_dim": white_gaussian(counts)},
        }
        results |= {kind: asdict(value) for kind, value in self._estimates().items()}
        if bounds := self._bounds:
            parts = {name: asdict(part) for name, part in bounds.parts().items()}
            results["bound"] |= {"parts": parts, "curve": asdict(bounds.curve()), "title": bounds.describe()}
        if evaluations := [by_flow.nfe for _, _, _, by_flow in self._found if by_flow is not None]:
            results["flow"]["network_evaluations"] = torch.cat(evaluations).double().mean().item()
        return results

    def describe(self) -> list[str]:
        results = self.details()
        return [*table(results), *verdict(results)]

    def draw(self, folder: Path) -> dict[str, Path]:
        bounds = self._bounds
        if bounds is None:
            return {}
        curve = bounds.curve()
        figure = charts.noise_levels(curve.snr_db, curve.loss, curve.bits_per_db, bounds.describe())
        return {"what each noise level costs": pictures.save(figure, folder / "noise_levels.png")}


def table(results: dict[str, Any]) -> list[str]:
    """The printed table: one figure per line, with its errors, or "-" for unknown ones."""
    figures = {NAMES["bound"]: results.get("bound")}
    figures |= {f"    {name}": part for name, part in results.get("bound", {}).get("parts", {}).items()}
    figures |= {NAMES["flow"]: results.get("flow"), "white Gaussian of this level": results["white_gaussian"]}
    lines = [f"{'':30}{'bits/dim':>10}{'± clips':>10}{'± noise':>10}"]
    for name, figure in figures.items():
        if figure:
            values = (figure.get(key, math.nan) for key in Estimate.__annotations__)
            lines.append(f"{name:30}" + "".join("         -" if math.isnan(v) else f"{v:10.4f}" for v in values))
    return lines


def verdict(results: dict[str, Any]) -> list[str]:
    """Explains the figures in words: lower is better; a model whose figure is above white noise has learnt nothing."""
    noise = results["white_gaussian"]["bits_per_dim"]
    lines = ["bits per dimension: lower is better; white noise of the same level is what a model must fall below"]
    for key, name in NAMES.items():
        if key in results:
            bits = results[key]["bits_per_dim"]
            word = "better" if bits < noise else "worse"
            line = f"{name}: {bits:.4g} bits is {word} than the {noise:.4g} of white noise"
            more = "" if bits < noise else ": the model has not learnt such sounds, or the shards are unlike its data"
            lines.append(line + more)
    return lines
