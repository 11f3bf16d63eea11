"""What is printed and drawn of figures."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from languagepipes_operator.cli.bench.options import Level
from languagepipes_operator.cli.bench.plot import write_plot
from languagepipes_operator.cli.bench.records import LevelRecording, RequestFailure, RequestRecord
from languagepipes_operator.cli.bench.report import print_report
from languagepipes_operator.cli.bench.summary import summarise
from rich.console import Console


def recording(*, cpu_seconds: float = 0.1, lateness: tuple[float, ...] = ()) -> LevelRecording:
    records = [
        RequestRecord(number, 0.0, 4, ended=0.9, chunk_times=[0.1 * number, 0.8], prompt_tokens=100, output_tokens=4)
        for number in (1, 2, 3)
    ]
    failure = RequestRecord(4, 0.0, 4, ended=0.5, failure=RequestFailure("HTTP 500", "\x1b[31mout of [memory]"))
    return LevelRecording((*records, failure), 0.0, 1.0, cpu_seconds, 1.0, lateness)


def report(*levels: Level, width: int = 200, recorded: LevelRecording | None = None) -> str:
    out = io.StringIO()
    summaries = [summarise(level, recorded or recording(), {"ttft": 0.25}) for level in levels]
    print_report(summaries, ["A note."], Console(file=out, width=width), title="tiny")
    return out.getvalue()


def test_the_table_has_a_column_for_each_level_and_the_field_s_names() -> None:
    text = report(Level("streams", 1), Level("streams", 4))

    rows = {cells[0]: cells[1:] for line in text.splitlines() if (cells := re.split(r" {2,}", line.strip()))}

    assert rows["1 stream"] == ["4 streams"]
    assert rows["TTFT, ms: p50 / p90 / p99"] == ["200 / 280 / 298"] * 2
    assert rows["output token throughput, tok/s"] == ["12.0"] * 2
    assert rows["goodput, % of requests"] == ["50.0"] * 2


def test_failures_and_how_tokens_came_are_told_and_nothing_steers_the_terminal() -> None:
    text = report(Level("rate", 0.5))

    assert "0.5 req/s: 1 failed, HTTP 500: [31mout of [memory]\n" in text
    assert "0.5 req/s: a chunk has 2.00 tokens on average; ITL is the gap between chunks." in text


def test_a_narrow_terminal_gets_a_table_for_each_few_levels() -> None:
    text = report(*(Level("streams", streams) for streams in (1, 2, 4, 8)), width=100)

    assert text.count("TTFT, ms") == 2
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_client_that_is_its_own_bottleneck_is_told() -> None:
    assert "WARNING" not in report(Level("streams", 1))
    assert "used 85 % of a core" in report(Level("streams", 1), recorded=recording(cpu_seconds=0.85))
    late = report(Level("streams", 1), Level("streams", 4), recorded=recording(lateness=(0.03,) * 9))
    assert "WARNING: 1 stream, 4 streams: 1 % of the time this client was late by more than 20 ms" in late


@pytest.mark.parametrize("levels", [(1,), (1, 2, 16)])
def test_the_plot_is_an_svg_of_text_and_the_same_each_time(tmp_path: Path, levels: tuple[int, ...]) -> None:
    files = [tmp_path / "first.svg", tmp_path / "second.svg"]
    summaries = [summarise(Level("streams", level), recording(), {}) for level in levels]
    for file in files:
        write_plot(file, summaries, [recording()] * len(levels), title="tiny at here")

    first, second = (file.read_bytes() for file in files)

    assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"tiny at here" in first
    assert first == second
    assert len(first) < 60_000


def test_a_plot_of_many_gaps_stays_small(tmp_path: Path) -> None:
    chunk_times = [number / 100 + (number % 7) / 1000 for number in range(50_000)]
    record = RequestRecord(1, 0.0, 4, ended=500.0, chunk_times=chunk_times, output_tokens=50_000)
    recorded = LevelRecording((record,), 0.0, 500.0, 0.1, 500.0)

    write_plot(tmp_path / "f.svg", [summarise(Level("streams", 1), recorded, {})], [recorded], title="")

    assert (tmp_path / "f.svg").stat().st_size < 80_000


def test_a_plot_of_nothing_but_failures_is_drawn(tmp_path: Path) -> None:
    failures = LevelRecording(recording().records[-1:], 0.0, 1.0, 0.1, 1.0)
    summaries = [summarise(Level("streams", level), failures, {}) for level in (1, 2)]

    write_plot(tmp_path / "one.svg", summaries[:1], [failures], title="")
    write_plot(tmp_path / "two.svg", summaries, [failures] * 2, title="")

    assert (tmp_path / "two.svg").stat().st_size > 1000
