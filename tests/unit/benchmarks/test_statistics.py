"""Figures are told honestly: medians with spread, ratios of pairs, tables that say what was asked and missed."""

from __future__ import annotations

import pytest

from benchmarks.figures import (
    Comparison,
    Spread,
    Target,
    better_of,
    comparison_table,
    histogram_quantile,
    markdown_table,
    significant,
)


def test_a_spread_shows_its_median_between_its_least_and_greatest_sample() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 10.0, 2.5])

    assert (spread.median, spread.least, spread.greatest) == (2.5, 1.0, 10.0)
    assert str(spread) == "2.50 (1.00–10.0)"


def test_a_spread_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of([])


def test_the_ratio_is_taken_pair_by_pair_so_that_drift_cancels() -> None:
    # The machine slows down by half in the middle of the run: each pair still says 1.5.
    figure = Comparison(
        "one stream",
        "tokens/s",
        ours=Spread.of([30.0, 30.0, 15.0]),
        theirs=Spread.of([20.0, 20.0, 10.0]),
        target=Target("higher", 1.0),
    )

    assert figure.ratio.samples == (1.5, 1.5, 1.5)
    assert figure.met


def test_a_wait_meets_its_target_when_the_ratio_stays_below() -> None:
    def wait(ours: float) -> Comparison:
        return Comparison("first token", "s", Spread.of([ours]), Spread.of([1.0]), Target("lower", 1.3))

    assert wait(1.3).met
    assert not wait(1.31).met


def test_unequal_numbers_of_samples_make_no_pairs() -> None:
    with pytest.raises(ValueError, match="2 samples of ours against 1 of theirs"):
        Comparison("x", "s", Spread.of([1, 2]), Spread.of([1]), Target("lower", 1.3))


@pytest.mark.parametrize(("better", "winner"), [("higher", 1), ("lower", 0)])
def test_the_better_of_two_dtypes_depends_on_what_is_better(better: str, winner: int) -> None:
    assert better_of(Spread.of([1.0, 1.2]), Spread.of([2.0, 1.5]), better) == winner  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (99.96, "100.0"), (12345.6, "12346")],
)
def test_numbers_are_shown_with_three_significant_digits_and_no_exponent(value: float, text: str) -> None:
    assert significant(value) == text


def test_a_table_pads_its_columns_and_refuses_ragged_rows() -> None:
    assert markdown_table(["a", "bb"], [["longer", "1"]]).splitlines() == [
        "| a      | bb |",
        "| ------ | -: |",
        "| longer |  1 |",
    ]
    with pytest.raises(ValueError, match="a row of 1 cells under a header of 2"):
        markdown_table(["a", "b"], [["only one"]])


def test_the_comparison_table_names_what_was_asked_and_what_was_missed() -> None:
    missed = Comparison("16 streams", "tokens/s", Spread.of([9.0]), Spread.of([10.0]), Target("higher", 1.0))

    table = comparison_table([missed], ours="ring", theirs="generate", notes=["bfloat16"])

    last = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert last == [
        "16 streams",
        "tokens/s",
        "9.00 (9.00–9.00)",
        "10.0 (10.0–10.0)",
        "0.900 (0.900–0.900)",
        "≥ 1.00",
        "no",
        "bfloat16",
    ]


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    buckets = [(0.0001, 10.0), (0.0002, 30.0), (float("inf"), 40.0)]

    assert histogram_quantile(0.5, buckets) == pytest.approx(0.00015)
    assert histogram_quantile(0.99, buckets) == 0.0002
    assert histogram_quantile(0.5, []) is None
