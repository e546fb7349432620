"""Signal statistics of generated clips beside those of real ones, as a metric."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from audio_diffusion.metrics import pictures
from audio_diffusion.metrics.metric import Clips, Figure, Metric, Subject, unpadded
from audio_diffusion.metrics.signal_statistics import (
    UNITS,
    ClipStatistics,
    Distribution,
    Summary,
    clip_statistics,
    spectrum_difference,
    spectrum_picture,
    summary_of,
)


class SignalComparison(Metric):
    """Level, peak, crest factor, clipping, DC, silence, stereo width and long-term spectrum of both sets of clips."""

    needs = ("real", "generated")

    def start(self, subject: Subject) -> None:
        self._sample_rate = subject.sample_rate
        self._found: dict[str, list[ClipStatistics]] = {"real": [], "generated": []}

    def update(self, clips: Clips, source: str) -> None:
        self._found[source] += [clip_statistics(clip, self._sample_rate) for clip in unpadded(clips)]

    def forget_generated(self) -> None:
        self._found["generated"] = []

    def _summaries(self) -> dict[str, Summary]:
        return {name: summary_of(found, self._sample_rate) for name, found in self._found.items() if found}

    def compute(self) -> dict[str, Figure]:
        summaries = self._summaries()
        figures = {}
        for source, summary in summaries.items():
            suffix = "" if source == "generated" else "_real"
            for name, values in summary.values.items():
                if not values.count:  # no clip has it, such as the stereo width of mono
                    continue
                note = f"5 % and 95 % of clips: {values.p5:.3g}, {values.p95:.3g}"
                figures[f"{name}{suffix}"] = Figure(values.mean, values.error, note=note)
        if len(summaries) == 2:
            difference = spectrum_difference(summaries["generated"], summaries["real"])
            figures["spectrum_difference_db"] = Figure(difference)
        return figures

    def details(self) -> dict[str, Any]:
        return {source: asdict(summary) for source, summary in self._summaries().items()}

    def describe(self) -> list[str]:
        summaries, lines = self._summaries(), []
        lines.append(f"{'signal statistics (mean, 5 % and 95 % of clips)':62}{'generated':>32}{'real':>32}")
        for name, unit in UNITS.items():
            of_both = [summaries[source].values[name] if source in summaries else None for source in self.needs[::-1]]
            what = unit.partition(" (")[0].partition(":")[0]
            lines.append(f"{f'{name}, {what}':62}" + "".join(f"  {_cell(values):>30}" for values in of_both))
        if len(summaries) == 2:
            difference = spectrum_difference(summaries["generated"], summaries["real"])
            lines.append(f"{'spectrum_difference_db, of third-octave bands':62}{difference:32.2f}")
        return lines

    def draw(self, folder: Path) -> dict[str, Path]:
        summaries = self._summaries()
        if len(summaries) < 2:
            return {}
        figure = spectrum_picture(summaries["generated"], summaries["real"])
        return {"long-term spectrum": pictures.save(figure, folder / "spectrum.png")}


def _cell(values: Distribution | None) -> str:
    if values is None or not values.count:
        return "-"
    mean, low, high = (f"{value:.3g}" for value in (values.mean, values.p5, values.p95))
    return f"{mean} ({low} to {high})"
