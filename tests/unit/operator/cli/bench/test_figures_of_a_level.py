"""Percentiles, latencies, throughput and goodput, from recorded events."""

from __future__ import annotations

import statistics

import pytest
from languagepipes_operator.cli.bench.options import Level
from languagepipes_operator.cli.bench.records import LevelRecording, RequestFailure, RequestRecord
from languagepipes_operator.cli.bench.summary import Distribution, LevelSummary, meets, percentile, summarise

STREAMS = Level("streams", 2)


def answered(
    *chunk_times: float,
    started: float = 0.0,
    ended: float | None = None,
    tokens: int | None = None,
    prompt: int | None = 10,
    asked: int = 1,
) -> RequestRecord:
    """A completed request; its stream ends with the last chunk where nothing else is said."""
    return RequestRecord(
        1,
        started,
        asked,
        sent=started,
        ended=chunk_times[-1] if ended is None else ended,
        chunk_times=list(chunk_times),
        prompt_tokens=prompt,
        output_tokens=tokens,
    )


def failed(kind: str, message: str, ended: float) -> RequestRecord:
    return RequestRecord(1, 0.0, 8, ended=ended, failure=RequestFailure(kind, message))


def summary(*records: RequestRecord, stopped: float = 10.0, **bounds: float) -> LevelSummary:
    return summarise(STREAMS, LevelRecording(records, 0.0, stopped, 1.0, 10.0), bounds)


@pytest.mark.parametrize("count", [2, 3, 10, 101, 1000])
def test_percentiles_are_those_of_the_standard_library(count: int) -> None:
    values = sorted((number * 7919) % 1009 / 3 for number in range(count))

    expected = statistics.quantiles(values, n=100, method="inclusive")

    assert [percentile(values, percent) for percent in range(1, 100)] == pytest.approx(expected)


def test_a_distribution_of_one_value_is_that_value_and_one_of_none_is_empty() -> None:
    assert Distribution.of([0.25, None]) == Distribution(1, 250, 250, 250, 250, 250, 250)
    assert Distribution.of([]) == Distribution(0, None, None, None, None, None, None)


def test_latencies_of_a_request_have_the_field_s_definitions() -> None:
    record = answered(1.5, 1.6, 1.8, 2.1, started=1.0, ended=2.2, tokens=4)

    assert record.ttft_seconds == pytest.approx(0.5)
    assert record.itl_seconds == pytest.approx([0.1, 0.2, 0.3])
    assert record.tpot_seconds == pytest.approx(0.2)
    assert record.e2el_seconds == pytest.approx(1.2)


def test_where_chunks_have_several_tokens_tpot_counts_tokens_and_itl_chunks() -> None:
    record = answered(1.0, 2.0, 3.0, tokens=9)

    assert record.tpot_seconds == pytest.approx(2.0 / 8)
    assert record.itl_seconds == pytest.approx([1.0, 1.0])
    assert summary(record).tokens_per_chunk == 3.0


def test_a_request_with_one_token_has_no_time_per_output_token() -> None:
    figures = summary(answered(0.5, tokens=1), answered(0.5, 1.5, tokens=2))

    assert figures.tpot_ms.count == 1
    assert figures.ttft_ms.count == 2


def test_throughput_counts_what_came_in_the_window() -> None:
    inside = answered(1.0, 2.0, tokens=8, prompt=20)
    across = answered(9.0, 9.5, 10.5, 11.0, started=8.0, tokens=8, prompt=30)

    figures = summary(inside, across)

    assert figures.request_throughput == pytest.approx(0.1)
    assert figures.output_throughput == pytest.approx((8 + 4) / 10)
    assert figures.total_token_throughput == pytest.approx((8 + 4 + 20 + 30) / 10)
    assert figures.mean_concurrency == pytest.approx((2.0 + 2.0) / 10)
    assert figures.e2el_ms.count == 2, "its latency counts: leaving it out would prefer short requests"


def test_without_usage_a_chunk_is_a_token_and_that_is_said() -> None:
    figures = summary(answered(1.0, 2.0, 3.0, prompt=None))

    assert (figures.output_tokens, figures.without_usage, figures.without_prompt_usage) == (3, 1, 1)
    assert figures.tokens_per_chunk is None


def test_what_ctrl_c_cut_off_counts_as_tokens_and_in_no_latency() -> None:
    cut = answered(3.0, 3.5, tokens=None)
    cut.interrupted = True

    figures = summary(answered(1.0, 2.0, tokens=6), cut, stopped=4.0)

    assert (figures.completed, figures.failed, figures.interrupted) == (1, 0, 1)
    assert figures.output_tokens == 6 + 2 * 3, "three tokens a chunk, as in the answers that ended"
    assert figures.ttft_ms.count == 1


def test_failures_are_counted_by_kind_with_the_first_message_of_each() -> None:
    figures = summary(
        failed("HTTP 500", "second", 2.0),
        failed("HTTP 500", "first", 1.0),
        failed("cut off", "gone", 0.5),
        answered(1.0, tokens=1),
    )

    assert [(kind.kind, kind.count, kind.first_message) for kind in figures.failures] == [
        ("HTTP 500", 2, "first"),
        ("cut off", 1, "gone"),
    ]
    assert (figures.completed, figures.failed) == (1, 3)


def test_goodput_is_of_requests_that_meet_every_bound_and_failures_meet_none() -> None:
    good = answered(0.4, 0.5, tokens=2)
    slow_start = answered(0.6, 0.7, tokens=2)
    slow_after = answered(0.4, 0.9, tokens=2)

    goodput = summary(good, slow_start, slow_after, failed("HTTP 500", "", 1.0), ttft=0.5, tpot=0.2).goodput

    assert goodput is not None
    assert goodput.share == pytest.approx(1 / 4)
    assert goodput.request_throughput == pytest.approx(0.1)
    assert goodput.bounds_ms == {"ttft": 500, "tpot": 200}


def test_a_bound_is_met_by_what_equals_it_and_tpot_by_an_answer_of_one_token() -> None:
    assert meets(answered(0.5, tokens=1), {"ttft": 0.5, "tpot": 0.001, "e2el": 0.5})
    assert not meets(answered(0.5, tokens=1), {"e2el": 0.49})


def test_an_answer_of_which_nothing_was_seen_meets_no_bound_of_the_first_token() -> None:
    silent = RequestRecord(1, 0.0, 4, ended=1.0, prompt_tokens=5, output_tokens=4)

    figures = summary(silent)

    assert not meets(silent, {"ttft": 100.0})
    assert (figures.silent, figures.output_tokens, figures.ttft_ms.count) == (1, 4, 0)


def test_shorter_answers_than_asked_for_are_counted() -> None:
    assert summary(answered(1.0, 2.0, tokens=2, asked=8), answered(1.0, tokens=8, asked=8)).ended_early == 1


def test_a_level_without_any_completed_request_has_figures_too() -> None:
    figures = summary(failed("no connection", "Connection refused", 0.1), ttft=1.0)

    assert figures.goodput is not None
    assert (figures.goodput.share, figures.request_throughput, figures.mean_output_tokens) == (0.0, 0.0, None)
