"""How many replicas are asked for: up at once, down to what was needed lately, and never beyond the limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from languagepipes_api.spec import AutoscalingSpec
from languagepipes_operator.decide.autoscaling import desired_replicas
from languagepipes_operator.observe.load import Load

NOW = datetime(2026, 11, 24, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)


def limits(least: int = 1, most: int = 4, *, target: int = 8) -> AutoscalingSpec:
    return AutoscalingSpec(min_replicas=least, max_replicas=most, target_requests_per_replica=target)


def desired(
    requests: int, current: int | None, least: int = 1, *, since: datetime = LONG_AGO, known: bool = True
) -> int:
    load = Load(requests, since, complete=known)
    return desired_replicas(limits(least), current=current, existing=2, load=load, now=NOW)


@pytest.mark.parametrize(
    ("requests", "current", "least", "expected"),
    [
        pytest.param(8, 1, 1, 1, id="exactly enough"),
        pytest.param(9, 1, 1, 2, id="one request more"),
        pytest.param(900, 1, 1, 4, id="never more than the most"),
        pytest.param(0, 3, 1, 1, id="never fewer than the fewest"),
        pytest.param(0, 1, 0, 0, id="nobody asks"),
        pytest.param(1, 0, 0, 1, id="somebody asks"),
        pytest.param(30, 0, 0, 4, id="many ask at once"),
        pytest.param(0, None, 1, 1, id="nothing was decided before"),
    ],
)
def test_one_replica_for_each_so_many_requests(requests: int, current: int | None, least: int, expected: int) -> None:
    assert desired(requests, current, least) == expected


def test_it_begins_with_the_replicas_that_exist() -> None:
    assert desired_replicas(limits(), current=None, existing=3, load=None, now=NOW) == 3
    assert desired_replicas(limits(0), current=None, existing=0, load=None, now=NOW) == 1
    assert desired_replicas(limits(most=2), current=None, existing=3, load=None, now=NOW) == 2


@pytest.mark.parametrize("doubt", [{"since": NOW - timedelta(seconds=299)}, {"known": False}])
def test_the_number_does_not_fall_before_enough_is_known_and_still_rises(doubt: dict[str, object]) -> None:
    assert desired(0, 3, **doubt) == 3  # type: ignore[arg-type]
    assert desired(25, 3, **doubt) == 4  # type: ignore[arg-type]


@given(
    requests=st.integers(0, 10_000),
    current=st.integers(0, 16),
    least=st.integers(0, 16),
    more=st.integers(0, 16),
    known=st.booleans(),
)
def test_more_requests_never_ask_for_fewer(requests: int, current: int, least: int, more: int, known: bool) -> None:
    spec = AutoscalingSpec(min_replicas=least, max_replicas=max(1, min(16, least + more)))

    def number(count: int) -> int:
        return desired_replicas(spec, current=current, existing=0, load=Load(count, LONG_AGO, known), now=NOW)

    assert spec.min_replicas <= number(requests) <= number(requests + 1) <= spec.max_replicas
    assert number(requests) * 8 >= requests or number(requests) == spec.max_replicas
