"""What a lost stage cost is worked out from moments: waits, windows of equal tokens, parts of a recovery."""

from __future__ import annotations

import time

import pytest

from benchmarks.recovery import (
    Fault,
    Rates,
    Recovery,
    Result,
    cpu_of_a_token,
    delays,
    logged,
    markdown_report,
    rate,
    rates,
    windows,
)
from benchmarks.streams import StreamFailed

FAULT = Fault(killed=10.0, noticed=10.1, started=10.5, imported=13.0, loaded=14.0, joined=14.5)


def test_a_wait_reaches_from_the_fault_to_the_token_that_it_delayed() -> None:
    # The first stream's second token was on its way when the stage was killed.
    had, waits = delays([[9.0, 10.2, 16.0, 17.0], [9.5, 16.5, 17.5]], FAULT)

    assert had == [2, 1]
    assert waits == (6.0, 6.5)


def test_a_stream_that_had_ended_before_the_ring_was_whole_tells_nothing() -> None:
    with pytest.raises(StreamFailed, match="more tokens"):
        delays([[9.0, 10.2], [9.5, 16.5]], FAULT)


def test_a_rate_counts_the_tokens_between_two_arrivals() -> None:
    assert rate([0.0, 1.0, 2.0, 3.0], first=1, last=4) == 1.0


def test_rates_are_compared_between_the_same_tokens_so_that_longer_context_is_no_loss() -> None:
    # Two streams in step; undisturbed a step takes 1 s up to the fourth token and 2 s from then on.
    undisturbed = [[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0]] * 2
    disturbed = [[6.0, 7.0, 8.0, 9.0, 20.0, 22.0, 24.0, 26.0]] * 2

    readings = [(0, 0.0), (10, 1.0), (16, 2.2)]
    found = rates(disturbed, undisturbed, windows(disturbed, FAULT), readings, readings)

    assert found.after == found.undisturbed_after
    assert found.before == found.undisturbed_before
    assert found.after < found.before
    assert found.cpu == found.undisturbed_cpu


def test_without_tokens_on_both_sides_of_the_fault_there_is_nothing_to_compare() -> None:
    with pytest.raises(StreamFailed, match="more tokens"):
        windows([[9.0, 16.0]], FAULT)


def test_the_cpu_time_of_a_token_is_that_between_readings_inside_the_window() -> None:
    readings = [(10, 0.1), (20, 1.0), (30, 1.5), (40, 2.0), (50, 9.0)]

    assert cpu_of_a_token(readings, 15, 45) == 50.0


def test_one_reading_says_nothing_of_a_tokens_cost() -> None:
    with pytest.raises(StreamFailed, match="too few"):
        cpu_of_a_token([(10, 0.1), (20, 1.0)], 15, 45)


def test_the_parts_of_a_recovery_add_up_to_the_last_streams_wait() -> None:
    parts = Recovery(FAULT, (5.0, 6.0, 8.0)).parts()

    assert sum(parts.values()) == 8.0
    assert parts["interpreter and imports"] == 2.5
    assert parts["computed again, median stream"] == 1.5


def test_a_ring_that_was_joined_before_its_slowest_member_was_seen_ready_took_no_time_to_join() -> None:
    fault = Fault(killed=0.0, noticed=None, started=1.0, imported=2.0, loaded=3.0, joined=2.9)

    assert fault.parts()["ring joined"] == 0.0


def test_only_what_was_logged_after_the_fault_counts() -> None:
    log = "2026-01-01 10:00:00,250 INFO engine: ring joined\nno time here\n"
    log += "2026-01-01 10:00:05,500 INFO engine: ring joined\n"
    start = time.mktime((2026, 1, 1, 10, 0, 0, 0, 0, -1))

    assert logged(log, "ring joined", after=start + 1) == start + 5.5
    assert logged(log, "ring joined", after=start + 6) is None


def test_the_report_says_what_was_asked_and_missed() -> None:
    lost = Recovery(FAULT, (11.0, 11.0))
    restarted = Recovery(Fault(0.0, None, 1.0, 2.0, 3.0, 4.0), (20.0, 30.0))
    result = Result([lost], [restarted], [Rates(200.0, 90.0, 8.0, 200.0, 100.0, 8.0)], [4000.0], [15])

    waits = result.comparisons()
    assert [figure.met for figure in waits] == [False, True, False]

    report = markdown_report(result, streams=16)
    assert "15 of 16" in report
    assert "≤ 0.400" in report
