"""Curves are told with their bounds: as tables and as a small SVG; a run that was cut short is taken up."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from support.described_machine import MACHINE

from benchmarks.bounds import MachineLimits
from benchmarks.curve_report import Curve, Point, markdown, share_of_bound, table, write_plot
from benchmarks.curves import steady_rate
from benchmarks.docs_section import SectionMissing, replace_section
from benchmarks.streams import Round, Stream, StreamFailed
from benchmarks.unfinished import OtherRun, Unfinished

RATES = Curve(
    "hops",
    "ms added to each hop",
    "tokens/s",
    (
        Point("1 stream", 5, (20.0, 25.0, 24.0), 50.0),
        Point("1 stream", 0, (80.0,), 100.0),
        Point("16 streams", 0, (300.0,), 1000.0),
    ),
)
WAITS = Curve("first token", "tokens of context", "s", (Point("1 stream", 128, (0.04,), 0.01),))


def test_a_row_shows_what_was_measured_its_bound_and_how_near_it_came() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(RATES).splitlines()[2:]]

    assert rows == [
        ["0", "80.0 (80.0–80.0)", "100", "80 %", "300 (300–300)", "1000", "30 %"],
        ["5", "24.0 (20.0–25.0)", "50.0", "48 %", "–", "–", "–"],
    ]


def test_a_wait_is_as_near_to_its_bound_as_it_is_short() -> None:
    assert share_of_bound(WAITS.points[0], WAITS.unit) == pytest.approx(0.25)


def test_the_picture_has_a_panel_a_curve_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"

    for file in (first, second):
        write_plot(file, [RATES, WAITS], title="SmolLM2")

    assert first.read_bytes() == second.read_bytes()
    texts = {element.text for element in ElementTree.parse(first).iter() if element.tag.endswith("}text")}
    assert {"hops", "first token", "tokens of context", "16 streams"} <= texts
    assert first.stat().st_size < 100_000


def test_a_point_above_its_bound_is_remarked_on() -> None:
    limits = MachineLimits(1e9, {"float32": 1e9})
    above = Curve("hops", "ms", "tokens/s", (Point("1 stream", 0, (120.0,), 100.0),))

    assert "Points above 100 %" in markdown(MACHINE, limits, 1e-4, [above], repeats=1)
    assert "Points above 100 %" not in markdown(MACHINE, limits, 1e-4, [RATES], repeats=1)


def _round(*times: tuple[float, ...]) -> Round:
    return Round(tuple(Stream(0.0, each, each[-1], len(each), 32, "text") for each in times))


def test_a_rate_counts_only_while_all_streams_decode() -> None:
    # The second begins at 2 s and the first ends at 4 s: five tokens come in between, at their ends included.
    streams = _round((1.0, 2.0, 3.0, 4.0), (2.0, 2.5, 3.0, 3.5, 5.0))

    assert steady_rate(streams) == pytest.approx(5 / 2.0)


def test_streams_that_never_decode_together_have_no_rate() -> None:
    with pytest.raises(StreamFailed, match="of 2 streams the first ended before the last began"):
        steady_rate(_round((1.0, 2.0), (3.0, 4.0)))


def test_a_section_of_a_page_is_replaced_and_the_rest_stays() -> None:
    page = "before\n<!-- curves: begin -->\nold\n<!-- curves: end -->\nafter\n"

    assert replace_section(page, "curves", "new\n") == (
        "before\n<!-- curves: begin -->\n\nnew\n\n<!-- curves: end -->\nafter\n"
    )
    with pytest.raises(SectionMissing, match="<!-- peers: begin -->"):
        replace_section(page, "peers", "new")


def test_a_run_that_was_cut_short_is_taken_up_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "unfinished.json"
    Unfinished(file, {"revision": "a"}, resume=False).keep("streams", [1, 2])

    resumed = Unfinished(file, {"revision": "a"}, resume=True)

    assert "streams" in resumed
    assert resumed["streams"] == [1, 2]
    assert "streams" not in Unfinished(file, {"revision": "a"}, resume=False)


def test_a_run_of_another_build_is_not_taken_up(tmp_path: Path) -> None:
    file = tmp_path / "unfinished.json"
    Unfinished(file, {"revision": "a"}, resume=False).keep("streams", [1, 2])

    with pytest.raises(OtherRun, match=r"whose revision is 'a', and now it is 'b'; run without --resume"):
        Unfinished(file, {"revision": "b"}, resume=True)
