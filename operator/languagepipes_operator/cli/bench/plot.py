"""Figures as an SVG. matplotlib, since it is what the field draws with and writes SVG without a browser; it
and what it brings take 136 MB, so it is an extra of its own, which the operator's image does not have.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from languagepipes_operator.cli.bench.records import LevelRecording
from languagepipes_operator.cli.bench.summary import PERCENTILES, Distribution, LevelSummary, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 400
REMEDY = "matplotlib is not installed: pip install matplotlib (the extra bench of languagepipes has it)"


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write_plot(
    file: Path, summaries: Sequence[LevelSummary], recordings: Sequence[LevelRecording], *, title: str
) -> None:
    """Of several levels: throughput and latencies against the level. Of one: how its latencies are distributed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text as text and ids that do not change: small files, and the same figures give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "languagepipes", "font.size": 9}):
        several = len(summaries) > 1
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, 3)
        figure.suptitle(title, fontsize=10)
        if several:
            _throughput(axes[0], summaries)
            _against_level(axes[1], summaries, "time to first token", [summary.ttft_ms for summary in summaries])
            _against_level(axes[2], summaries, "inter-token latency", [summary.itl_ms for summary in summaries])
        else:
            done = [record for record in recordings[0].records if record.completed]
            _shares(axes[0], "time to first token", [record.ttft_seconds for record in done])
            _shares(axes[1], "inter-token latency", [gap for record in done for gap in record.itl_seconds])
            _shares(axes[2], "end-to-end latency", [record.e2el_seconds for record in done])
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _throughput(axes: Axes, summaries: Sequence[LevelSummary]) -> None:
    axes.set_title("output token throughput")
    axes.plot(
        [summary.level.value for summary in summaries],
        [summary.output_throughput for summary in summaries],
        marker="o",
    )
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    _levels(axes, summaries)


def _against_level(
    axes: Axes, summaries: Sequence[LevelSummary], name: str, distributions: Sequence[Distribution]
) -> None:
    axes.set_title(name)
    levels = [summary.level.value for summary in summaries]
    for percent in PERCENTILES:
        values = [getattr(distribution, f"p{percent}") for distribution in distributions]
        known = [(level, value) for level, value in zip(levels, values, strict=True) if value is not None]
        axes.plot([level for level, _ in known], [value for _, value in known], marker="o", label=f"p{percent}")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _levels(axes, summaries)


def _levels(axes: Axes, summaries: Sequence[LevelSummary]) -> None:
    levels = [summary.level.value for summary in summaries]
    axes.set_xlabel("streams" if summaries[0].level.kind == "streams" else "requests/s")
    if max(levels) > 4 * min(levels):
        axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _shares(axes: Axes, name: str, seconds: Sequence[float | None]) -> None:
    axes.set_title(name)
    known = sorted(value * 1000 for value in seconds if value is not None)
    if len(known) > _POINTS:  # the file is to stay small, whatever was measured
        known = [percentile(known, 100 * point / _POINTS) for point in range(_POINTS + 1)]
    if known:
        axes.ecdf(known)
    axes.set_xlabel("ms")
    axes.set_ylabel("share of all")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
