"""Curves as tables and as one SVG, every point with its spread and its bound. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import bounds, machine
from benchmarks.figures import Spread, markdown_table, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_LEGEND = """\
What each bound is made of. **Memory**: every weight of a step is read once, and the KV cache of every stream; \
{read} GB/s, the best of seven reads of 1 GiB by all cores. **Arithmetic**: two operations for each weight and token, \
four for each number of a query and each token that it attends to; {flops} GFLOP/s, the best of five products of \
2048 × 2048 matrices, in float32 or bfloat16. The slower of the two is a step's time; members share this machine, so \
their times add up. **Latency**: {hop} µs a hop, the median of a ring of three members without compute, times the \
members; with time added to hops, that too: a stream gets a token at most once in a step and a whole way round, and \
all streams together no more than memory and arithmetic give. One token a way round is assumed: where drafts are \
verified, several come home at once."""

_ABOVE = """\
**Points above 100 %**: the machine was slower while memory and arithmetic were measured than later, or a way round \
brought several tokens. With nothing else running, and no drafts, a run without such points is to be had."""


@dataclass(frozen=True)
class Point:
    """One point of a series. samples: in the curve's unit, in the order taken. bound: what no ring can beat."""

    series: str
    x: float
    samples: tuple[float, ...]
    bound: float

    @property
    def spread(self) -> Spread:
        return Spread.of(self.samples)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Point:
        return cls(data["series"], data["x"], tuple(data["samples"]), data["bound"])


@dataclass(frozen=True)
class Curve:
    """axis: what x is. unit: of samples and bounds; of "s" less is better, of anything else more."""

    title: str
    axis: str
    unit: str
    points: tuple[Point, ...]

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(point.series for point in self.points))

    def of(self, series: str) -> list[Point]:
        """In ascending order of x."""
        return sorted((point for point in self.points if point.series == series), key=lambda point: point.x)


def share_of_bound(point: Point, unit: str) -> float:
    """1 at the bound, less away from it, whether more is better or less."""
    median = point.spread.median
    return point.bound / median if unit == "s" else median / point.bound


def table(curve: Curve) -> str:
    """A row for each x, and for each series what was measured, its bound, and how near it came."""
    header = [curve.axis]
    for series in curve.series:
        header += [f"{series}, {curve.unit}", "bound", "of bound"]
    rows = []
    for x in sorted({point.x for point in curve.points}):
        row = [f"{x:g}"]
        for series in curve.series:
            found = next((point for point in curve.of(series) if point.x == x), None)
            if found is None:
                row += ["–", "–", "–"]
                continue
            share = f"{100 * share_of_bound(found, curve.unit):.0f} %"
            row += [str(found.spread), significant(found.bound), share]
        rows.append(row)
    return markdown_table(header, rows)


def markdown(
    described: Mapping[str, Any],
    limits: bounds.MachineLimits,
    hop_seconds: float,
    curves: Sequence[Curve],
    *,
    repeats: int,
) -> str:
    """The report: on what, all tables, and how the bounds were had."""
    head = f"{machine.markdown(dict(described))}\n- Medians of {repeats} samples (least–greatest)."
    legend = _LEGEND.format(
        read=significant(limits.read_bytes_per_second / 1e9),
        flops=significant(limits.best_flops / 1e9),
        hop=significant(hop_seconds * 1e6),
    )
    tables = [f"{curve.title.capitalize()}:\n\n{table(curve)}" for curve in curves]
    above = any(share_of_bound(point, curve.unit) > 1 for curve in curves for point in curve.points)
    return "\n\n".join([head, *tables, legend, *([_ABOVE] if above else [])])


def write_plot(file: Path, curves: Sequence[Curve], *, title: str) -> None:
    """A panel for each curve: medians with least and greatest, and the bound in the same colour, dashed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text as text and ids that do not change: small files, and the same figures give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "languagepipes", "font.size": 9}):
        rows = -(-len(curves) // _COLUMNS)
        columns = min(_COLUMNS, len(curves))
        figure = Figure(figsize=(3.7 * columns, 3.2 * rows), layout="constrained")
        figure.suptitle(f"{title}: measured (solid) and bound (dashed)", fontsize=10)
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, curve in zip(panels, curves, strict=False):
            _draw(panel, curve)
        for panel in panels[len(curves) :]:
            panel.set_axis_off()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _draw(axes: Axes, curve: Curve) -> None:
    from matplotlib.ticker import LogFormatter

    axes.set_title(curve.title)
    for number, series in enumerate(curve.series):
        points = curve.of(series)
        places = [point.x for point in points]
        spreads = [point.spread for point in points]
        medians = [spread.median for spread in spreads]
        below = [spread.median - spread.least for spread in spreads]
        above = [spread.greatest - spread.median for spread in spreads]
        colour = f"C{number}"
        axes.errorbar(places, medians, yerr=[below, above], marker="o", markersize=3, color=colour, label=series)
        axes.plot(places, [point.bound for point in points], linestyle="--", color=colour)
    ticks = sorted({point.x for point in curve.points})
    if ticks[0] > 0 and ticks[-1] >= 16 * ticks[0]:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yscale("log")
    for ticked in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticked(LogFormatter(minor_thresholds=(2, 0.5)))  # numbers, not powers of ten
    axes.set_xlabel(curve.axis)
    axes.set_ylabel(curve.unit)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
