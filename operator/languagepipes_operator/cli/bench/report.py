"""The table at the end, and what a reader must know to judge it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from languagepipes_operator.cli.bench.summary import PERCENTILES, Distribution, LevelSummary
from languagepipes_operator.cli.openai_server import without_control_characters

CPU_WARNING_SHARE = 0.8
_LATE_WARNING_MS = 20.0
_NAME_WIDTH, _COLUMN_WIDTH = 36, 24
_POINTS = " / ".join(f"p{percent}" for percent in PERCENTILES)


def print_report(summaries: Sequence[LevelSummary], notes: Sequence[str], console: Console, *, title: str) -> None:
    """One column a level; several tables where the terminal is narrow."""
    columns = max(1, (console.width - _NAME_WIDTH) // _COLUMN_WIDTH)
    for first in range(0, len(summaries), columns):
        console.print(_table(summaries[first : first + columns], title if first == 0 else ""))
        console.print()
    for note in [*notes, *_notes(summaries)]:
        console.print(Text(without_control_characters(note)))


def _table(summaries: Sequence[LevelSummary], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for summary in summaries:
        table.add_column(str(summary.level), justify="right", no_wrap=True)
    for name, cell in _rows(summaries):
        table.add_row(name, *(cell(summary) for summary in summaries))
    return table


def _rows(summaries: Sequence[LevelSummary]) -> Iterator[tuple[str, Callable[[LevelSummary], str]]]:
    yield "duration, s", lambda summary: f"{summary.duration_seconds:.1f}"
    yield "requests completed", lambda summary: str(summary.completed)
    yield "requests failed", lambda summary: str(summary.failed)
    if any(summary.interrupted for summary in summaries):
        yield "requests cut off by Ctrl-C", lambda summary: str(summary.interrupted)
    yield "concurrency, mean", lambda summary: number(summary.mean_concurrency)
    yield "prompt tokens, mean", lambda summary: number(summary.mean_prompt_tokens)
    yield "output tokens, mean", lambda summary: number(summary.mean_output_tokens)
    yield "request throughput, req/s", lambda summary: number(summary.request_throughput)
    yield "output token throughput, tok/s", lambda summary: number(summary.output_throughput)
    yield "total token throughput, tok/s", lambda summary: number(summary.total_token_throughput)
    yield f"TTFT, ms: {_POINTS}", lambda summary: _points(summary.ttft_ms)
    yield f"TPOT, ms: {_POINTS}", lambda summary: _points(summary.tpot_ms)
    yield f"ITL, ms: {_POINTS}", lambda summary: _points(summary.itl_ms)
    yield f"E2EL, ms: {_POINTS}", lambda summary: _points(summary.e2el_ms)
    if any(summary.goodput for summary in summaries):
        yield (
            "goodput, % of requests",
            lambda summary: number(summary.goodput.share * 100 if summary.goodput else None),
        )
        yield (
            "goodput, req/s",
            lambda summary: number(summary.goodput.request_throughput if summary.goodput else None),
        )
    yield "this client's CPU, % of a core", lambda summary: f"{summary.cpu_share * 100:.0f}"
    yield f"this client is late by, ms: {_POINTS}", lambda summary: _points(summary.lateness_ms)


def _notes(summaries: Sequence[LevelSummary]) -> Iterator[str]:
    goodput = next((summary.goodput for summary in summaries if summary.goodput), None)
    if goodput is not None:
        bounds = ", ".join(f"{metric.upper()} at most {number(ms)} ms" for metric, ms in goodput.bounds_ms.items())
        yield f"Goodput: requests with {bounds}."
    for summary in summaries:
        for failure in summary.failures:
            yield f"{summary.level}: {failure.count} failed, {failure.kind}: {failure.first_message}"
    for summary in summaries:
        yield from _warnings(summary)
    late = {str(s.level): s.lateness_ms.p99 for s in summaries if (s.lateness_ms.p99 or 0) > _LATE_WARNING_MS}
    if late:
        yield (
            f"WARNING: {', '.join(late)}: 1 % of the time this client was late by more than {_LATE_WARNING_MS:g} ms, "
            "which is in the figures: it lacks CPU time; run it on another machine than the server."
        )


def _warnings(summary: LevelSummary) -> Iterator[str]:
    if (tokens := summary.tokens_per_chunk) is not None and not 0.95 <= tokens <= 1.05:
        yield f"{summary.level}: a chunk has {tokens:.2f} tokens on average; ITL is the gap between chunks."
    if summary.without_usage:
        yield (
            f"{summary.level}: {summary.without_usage} of {summary.completed} answers came without usage; "
            "a chunk is counted as one token there."
        )
    if summary.without_prompt_usage:
        yield (
            f"{summary.level}: {summary.without_prompt_usage} of {summary.completed} answers came without the "
            "prompt's tokens, which total token throughput lacks."
        )
    if summary.ended_early:
        yield f"{summary.level}: {summary.ended_early} of {summary.completed} answers are shorter than asked for."
    if summary.silent:
        yield f"{summary.level}: {summary.silent} of {summary.completed} answers showed nothing; TTFT lacks them."
    if summary.cpu_share > CPU_WARNING_SHARE:
        yield (
            f"WARNING: {summary.level}: this client used {summary.cpu_share * 100:.0f} % of a core, so the figures are "
            "its own; run several clients at lower levels."
        )


def number(value: float | None) -> str:
    """Three digits that count, and a dash for none."""
    if value is None:
        return "-"
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _points(distribution: Distribution) -> str:
    return " / ".join(number(value) for value in (distribution.p50, distribution.p90, distribution.p99))
