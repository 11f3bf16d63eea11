"""When a pipe is looked at again although nothing was reported."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from languagepipes_operator.decide.requeue import seconds_to_next

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("due_seconds", "ready", "unwell", "blocked", "expected"),
    [
        pytest.param(10_000, True, False, False, 3600, id="Ready: once an hour"),
        pytest.param(100, True, False, False, 100, id="a certificate is due"),
        pytest.param(-5, True, False, False, 0, id="a certificate was due"),
        pytest.param(10_000, False, False, False, 60, id="not Ready"),
        pytest.param(10_000, False, False, True, 30, id="refused, or a name is taken"),
        pytest.param(10_000, True, False, True, 30, id="Ready, and something is refused"),
        pytest.param(10_000, False, True, True, 5, id="something starts or is stuck"),
    ],
)
def test_the_soonest_reason_counts(
    due_seconds: float, ready: bool, unwell: bool, blocked: bool, expected: float
) -> None:
    due = NOW + timedelta(seconds=due_seconds)

    assert seconds_to_next(now=NOW, due=(None, due), ready=ready, unwell=unwell, blocked=blocked) == expected
