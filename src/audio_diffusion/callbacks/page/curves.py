"""Curves of metrics as SVG: groups them into plots, and computes scales and points."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from audio_diffusion.callbacks.page.metrics_log import Curve, Point, mean
from audio_diffusion.callbacks.page.records import Run

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24  # margins of the plot for its ticks
MOST = 240  # maximum number of points of a line; more points are averaged
NUM_COLOURS = 8

#: curves of one run that share a plot: title, names, and the common start of names
_TOGETHER = (
    ("Loss", ("train/loss", "val/loss", "val/loss_ema"), ""),
    ("Loss by noise level: range of t", (), "train/loss_t_"),
    ("Parts of the bits per dimension", (), "val/bits_L_"),
)
#: curves with a standard error under another name
_ERRORS = {"val/bits_per_dim": "val/bits_standard_error"}
#: the order of plots, by starts of names; all other plots are shown on demand
_FIRST = ("train/loss", "val/loss", "val/bits_per_dim", "metrics/", "val/", "speed/")


@dataclass(frozen=True)
class Line:
    """A curve in the coordinates of the plot."""

    name: str
    colour: int
    points: str  # points of an SVG polyline
    band: str  # points of an SVG polygon, the interval around the curve; may be empty
    last: str
    lowest: str  # value and step


@dataclass
class Panel:
    """A plot of one or several curves with common scales."""

    title: str
    is_first: bool  # whether it is shown initially
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    x_range: tuple[float, float] = (0, 1)
    y_range: tuple[float, float] = (0, 1)
    is_log: bool = False


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Returns the plots of all curves: for one run, related curves share a plot; for several, each metric has one."""
    names = list(dict.fromkeys(name for run in runs for name in run.curves))
    helpers = {helper for name in names for helper in _helpers(name)}
    groups = list(_groups([name for name in names if name not in helpers], len(runs) == 1))
    groups.sort(key=lambda group: _rank(group[1][0]))
    return [_panel(title, runs, group) for title, group in groups]


def _rank(name: str) -> int:
    """Returns the rank of a curve in the order of the page."""
    return next((rank for rank, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))


def _groups(names: Sequence[str], together: bool) -> Iterator[tuple[str, list[str]]]:
    """Returns title and names of the curves of each plot."""
    rest = list(names)
    for title, whole, start in _TOGETHER if together else ():
        group = [name for name in rest if name in whole or (start and name.startswith(start))]
        if group:
            yield title, sorted(group) if start else group
        rest = [name for name in rest if name not in group]
    for name in rest:
        yield name, [name]


def _helpers(name: str) -> tuple[str, ...]:
    """Returns the names of the curves that give a curve's interval."""
    return (f"{name}_low", f"{name}_high", f"{name}_error", *([_ERRORS[name]] if name in _ERRORS else []))


def _interval(curves: Mapping[str, Curve], name: str) -> list[tuple[float, float, float]]:
    """Returns (step, low, high) of a curve: as logged, or 1.96 standard errors around it; empty if unknown."""
    low, high, error, *other = (dict(curves.get(helper, ())) for helper in _helpers(name))
    error = error or (other[0] if other else {})
    if low and high:
        return [(step, low[step], high[step]) for step, _ in curves[name] if step in low and step in high]
    deviation = {step: 1.96 * value for step, value in error.items()}
    return [(s, value - deviation[s], value + deviation[s]) for s, value in curves[name] if s in deviation]


def _panel(title: str, runs: Sequence[Run], names: Sequence[str]) -> Panel:
    """Creates a plot of some curves of all runs that have them."""
    found = [(run, number, name) for number, run in enumerate(runs) for name in names if name in run.curves]
    drawn = {(number, name): thinned(run.curves[name].points) for run, number, name in found}
    bands = {(number, name): thinned_band(_interval(run.curves, name)) for run, number, name in found}
    values = [value for points in drawn.values() for _, value in points]
    edges = [edge for band in bands.values() for _, low, high in band for edge in (low, high)]
    steps = [step for run, _, name in found for step, _ in (run.curves[name][0], run.curves[name].last)]

    prefix = next((start for together, _, start in _TOGETHER if together == title), "")  # part of the title
    panel = Panel(title, _rank(names[0]) < len(_FIRST))
    panel.is_log = min(values) > 0 and max(values) > 20 * min(values)
    if panel.is_log:
        edges = [edge for edge in edges if edge > 0]
    panel.x_range = _widened(min(0, *steps), max(steps))
    panel.y_range = _widened(min(values + edges), max(values + edges), panel.is_log)
    panel.x_ticks = [(_x(panel, tick), short(tick)) for tick in ticks(*panel.x_range, 4)]
    panel.y_ticks = [(_y(panel, tick), short(tick)) for tick in ticks(*panel.y_range, 5, panel.is_log)]
    for run, number, name in found:
        curve, band = run.curves[name], bands[number, name]
        colour = number if len(runs) > 1 else list(names).index(name)
        shown = run.name if len(runs) > 1 else name.removeprefix(prefix)
        outline = [(s, high) for s, _, high in band] + [(s, low) for s, low, _ in reversed(band)]
        text = _text(panel, drawn[number, name])
        lowest = f"{short(curve.least[1])} at step {curve.least[0]:,}"
        line = Line(shown, colour % NUM_COLOURS, text, _text(panel, outline), short(curve.last[1]), lowest)
        panel.lines.append(line)
    return panel


def thinned(points: Sequence[Point]) -> list[Point]:
    """Reduces a curve to at most ``MOST`` points by averaging neighbours."""
    size = math.ceil(len(points) / MOST)
    return [mean(points[start : start + size]) for start in range(0, len(points), max(size, 1))]


def thinned_band(band: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Reduces an interval like ``thinned``."""
    low = thinned([(step, below) for step, below, _ in band])
    high = thinned([(step, above) for step, _, above in band])
    return [(step, below, above) for (step, below), (_, above) in zip(low, high, strict=True)]


def _widened(low: float, high: float, is_log: bool = False) -> tuple[float, float]:
    """Widens the range of a single value, which would be empty."""
    if high > low:
        return low, high
    return (low / 2, high * 2) if is_log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _x(panel: Panel, step: float) -> float:
    low, high = panel.x_range
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - low) / (high - low)


def _y(panel: Panel, value: float) -> float:
    low, high = panel.y_range
    if panel.is_log:
        low, high, value = math.log(low), math.log(high), math.log(max(value, low))
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def _text(panel: Panel, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_x(panel, step):.1f},{_y(panel, value):.1f}" for step, value in points)


def ticks(low: float, high: float, most: int, is_log: bool = False) -> list[float]:
    """Returns about ``most`` round numbers within a range."""
    if is_log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        is_short = high < 100 * low
        every = 1 if is_short else max(1, math.ceil(len(decades) / most))
        factors = (1, 2, 5) if is_short else (1,)
        found = [factor * 10.0**decade for decade in decades[::every] for factor in factors]
        return [tick for tick in found if low <= tick <= high]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def short(value: float) -> str:
    """Formats a number with few characters."""
    if value == int(value) and 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) < 10_000 or value % 1000 else f"{value / 1000:.0f}k"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:.3g}"
