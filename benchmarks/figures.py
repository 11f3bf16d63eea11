"""Figures and how they are told: medians with their spread, ratios of interleaved pairs, Markdown tables.

Pure: nothing here measures, starts or reads anything. A figure without a spread is not a figure, so every number that
leaves this module carries its least and greatest sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Spread:
    """Samples of one quantity, in one unit, in the order they were taken. At least one."""

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a spread needs at least one sample; measure before you report")

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(tuple(float(sample) for sample in samples))

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def least(self) -> float:
        return min(self.samples)

    @property
    def greatest(self) -> float:
        return max(self.samples)

    def to_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": self.least,
            "max": self.greatest,
            "samples": list(self.samples),
        }

    def __str__(self) -> str:
        return f"{significant(self.median)} ({significant(self.least)}–{significant(self.greatest)})"


@dataclass(frozen=True)
class Target:
    """What a ratio (ours over theirs) must reach: at least 1.0 times for a rate, at most 1.3 times for a wait."""

    better: Better
    ratio: float

    def met(self, ratio: float) -> bool:
        return ratio >= self.ratio if self.better == "higher" else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'≥' if self.better == 'higher' else '≤'} {significant(self.ratio)}"


@dataclass(frozen=True)
class Comparison:
    """One figure of ours beside one of theirs, taken in turn (ours[i] right after theirs[i]), in the same unit."""

    name: str
    unit: str
    ours: Spread
    theirs: Spread
    target: Target

    def __post_init__(self) -> None:
        if len(self.ours.samples) != len(self.theirs.samples):
            raise ValueError(
                f"{self.name}: {len(self.ours.samples)} samples of ours against {len(self.theirs.samples)} of theirs; "
                "pairs are compared, so take as many of each"
            )

    @property
    def ratio(self) -> Spread:
        """Ours over theirs, pair by pair: what drifts over both halves of a pair cancels."""
        return Spread.of([ours / theirs for ours, theirs in zip(self.ours.samples, self.theirs.samples, strict=True)])

    @property
    def met(self) -> bool:
        return self.target.met(self.ratio.median)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours.to_json(),
            "theirs": self.theirs.to_json(),
            "ratio": self.ratio.to_json(),
            "target": asdict(self.target),
            "met": self.met,
        }


def better_of(first: Spread, second: Spread, better: Better) -> int:
    """0 or 1: which of two spreads has the better median. The first wins a tie."""
    if better == "higher":
        return 0 if first.median >= second.median else 1
    return 0 if first.median <= second.median else 1


def significant(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and no exponent: 0.0123, 1.23, 123, 12345."""
    if value == 0:
        return "0"
    magnitude = len(str(int(abs(value)))) if abs(value) >= 1 else -_leading_zeros(abs(value))
    return f"{value:.{max(0, digits - magnitude)}f}"


def _leading_zeros(fraction: float) -> int:
    zeros = 0
    while fraction < 0.1:
        fraction *= 10
        zeros += 1
    return zeros


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns, the first left-aligned and the others right. Cells must hold no `|`."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)}")
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (max(width, 2) - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), "| " + " | ".join(rule) + " |", *(line(row) for row in rows)])


def comparison_table(comparisons: Sequence[Comparison], *, ours: str, theirs: str, notes: Sequence[str] = ()) -> str:
    """Median (min–max) of both, the ratio of pairs, what was asked and whether it was met; `notes` a row, if any."""
    header = ["figure", "unit", ours, theirs, "ratio", "asked", "met", *(["baseline"] if notes else [])]
    rows = []
    for place, figure in enumerate(comparisons):
        row = [
            figure.name,
            figure.unit,
            str(figure.ours),
            str(figure.theirs),
            str(figure.ratio),
            str(figure.target),
            "yes" if figure.met else "no",
        ]
        rows.append(row + ([notes[place]] if notes else []))
    return markdown_table(header, rows)


def histogram_quantile(quantile: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """A quantile from cumulative (upper bound, count) buckets, interpolated as Prometheus' histogram_quantile does.

    None if the histogram is empty; the greatest finite bound if the quantile lies in the +Inf bucket.
    """
    ordered = sorted(buckets)
    if not ordered or ordered[-1][1] <= 0:
        return None
    rank = quantile * ordered[-1][1]
    lower_bound, lower_count = 0.0, 0.0
    for bound, count in ordered:
        if count >= rank:
            if bound == float("inf"):
                return lower_bound
            if count == lower_count:
                return bound
            return lower_bound + (bound - lower_bound) * (rank - lower_count) / (count - lower_count)
        lower_bound, lower_count = bound, count
    return lower_bound
