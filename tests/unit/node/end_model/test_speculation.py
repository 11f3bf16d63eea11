"""Which drafts are worth their rows."""

from __future__ import annotations

import pytest
from languagepipes_node.end_model.speculation import (
    LEAST_CHANCE,
    LEAST_PACE,
    MOST_DRAFTED,
    Acceptance,
    Offer,
    Speculator,
    drafts_that_pay,
)

SURE = Offer(0.95, 15)
HOPELESS = Offer(0.05, 15)
NOTHING = Offer(0.9, 0)


def costs(fixed: float, row: float, *, dear_from: int = 10**6) -> object:
    return lambda tokens: fixed + row * tokens + (100.0 if tokens >= dear_from else 0.0)


@pytest.mark.parametrize(
    ("offers", "seconds", "expected"),
    [
        pytest.param([SURE], costs(30.0, 0.1), [15], id="rows cost almost nothing"),
        pytest.param([SURE], costs(0.0, 1.0), [0], id="a row costs what a token does"),
        pytest.param([SURE], costs(30.0, 0.1, dear_from=8), [6], id="up to where rows become dear"),
        pytest.param([HOPELESS], costs(30.0, 0.0), [0], id="never right"),
        pytest.param([NOTHING], costs(30.0, 0.0), [0], id="none on offer"),
        pytest.param([], costs(30.0, 0.1), [], id="nobody"),
        pytest.param([Offer(0.5, 15)], costs(30.0, 0.1), [3], id="as far as they may be right"),
        pytest.param([SURE, HOPELESS], costs(30.0, 0.1), [15, 0], id="each by its own drafts"),
        pytest.param([SURE] * 16, costs(10.0, 0.1), [3] * 16, id="sixteen streams share what fits"),
        pytest.param([SURE, NOTHING], costs(10.0, 1.0), [1, 0], id="nobody is slowed down much by another's"),
    ],
)
def test_as_many_drafts_are_sent_as_bring_the_most_tokens_a_second(
    offers: list[Offer], seconds: object, expected: list[int]
) -> None:
    assert drafts_that_pay(offers, most=48, seconds=seconds) == expected  # type: ignore[arg-type]


def test_there_are_no_more_than_fit() -> None:
    free = costs(30.0, 0.0)
    assert drafts_that_pay([SURE], most=4, seconds=free) == [4]  # type: ignore[arg-type]
    assert drafts_that_pay([SURE], most=0, seconds=free) == [0]  # type: ignore[arg-type]
    assert drafts_that_pay([SURE, SURE], most=-1, seconds=free) == [0, 0]  # type: ignore[arg-type]
    assert sum(drafts_that_pay([SURE, SURE], most=5, seconds=free)) == 5  # type: ignore[arg-type]


def test_a_measurement_that_makes_more_rows_cheaper_than_fewer_is_not_believed() -> None:
    def odd(tokens: int) -> float:
        return 20.0 if tokens <= 2 else 1.0

    assert drafts_that_pay([Offer(0.3, 15)], most=15, seconds=odd) == drafts_that_pay(
        [Offer(0.3, 15)], most=15, seconds=lambda tokens: 20.0
    )


@pytest.mark.parametrize(
    ("offers", "most", "expected"),
    [([SURE], 48, [1]), ([HOPELESS], 48, [0]), ([NOTHING], 48, [0]), ([SURE], 0, [0]), ([SURE, SURE], 48, [1, 0])],
)
def test_now_and_then_one_is_sent_that_does_not_pay_so_that_its_time_is_measured_anew(
    offers: list[Offer], most: int, expected: list[int]
) -> None:
    dear = costs(0.0, 1.0)
    assert drafts_that_pay(offers, most=most, seconds=dear, probe=True) == expected  # type: ignore[arg-type]


def test_now_and_then_twice_as_many_are_sent_as_pay() -> None:
    steep = costs(30.0, 0.1, dear_from=8)
    assert drafts_that_pay([SURE], most=48, seconds=steep, probe=True) == [12]  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [0.01, 0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("others", [1, 3, 15])
def test_a_stream_without_drafts_keeps_its_pace_beside_those_with_some(row: float, others: int) -> None:
    offers = [*[SURE] * others, NOTHING]
    sent = sum(drafts_that_pay(offers, most=200, seconds=lambda tokens: 20.0 + row * tokens))
    alone, slowed = 20.0 + row * len(offers), 20.0 + row * (len(offers) + sent)
    assert alone / slowed >= LEAST_PACE


def test_the_share_of_right_drafts_follows_the_latest_ones() -> None:
    acceptance = Acceptance()
    assert LEAST_CHANCE < acceptance.share < 0.5
    for _ in range(5):
        acceptance.add(right=False)
    assert acceptance.share < LEAST_CHANCE
    for _ in range(30):
        acceptance.add(right=True)
    assert 0.9 < acceptance.share < 1.0
    for _ in range(25):
        acceptance.add(right=False)
    assert acceptance.share < LEAST_CHANCE


def _all(draft: tuple[int, ...]) -> int:
    return len(draft)


def test_drafts_are_judged_whether_they_were_sent_or_not() -> None:
    speculator, tokens = Speculator(), [1, 2, 3, 4, 1, 2]
    before = speculator.acceptance.share
    assert speculator.draft(tokens, 2, _all) == (3, 4)
    speculator.sampled(3)  # the first was right
    after_one = speculator.acceptance.share
    assert after_one > before
    speculator.sampled(9)  # and the second was not
    assert speculator.acceptance.share < after_one
    settled = speculator.acceptance.share
    speculator.sampled(4)  # nothing more was drafted
    assert speculator.acceptance.share == settled


def test_a_draft_is_cut_to_what_can_follow_and_to_what_a_frame_may_hold() -> None:
    speculator = Speculator()
    assert speculator.draft([1, 2, 3, 4, 1, 2], 4, lambda draft: 1) == (3,)
    assert speculator.draft([1, 2, 3, 4, 1, 2, 3], 4, lambda draft: 0) == ()
    assert speculator.draft([5] * 40, 100, _all) == (5,) * MOST_DRAFTED


def test_what_a_grammar_requires_comes_first_and_is_judged_apart() -> None:
    speculator, tokens = Speculator(), [1, 2, 3, 4, 1, 2]
    assert speculator.draft(tokens, 3, len, lambda: (7, 8)) == (7, 8)
    for token in (7, 8):
        speculator.sampled(token)
    required = speculator.acceptance.share
    assert speculator.draft([*tokens, 7, 8, 1, 2], 2, len, tuple) == (7, 8)
    assert speculator.acceptance.share < required
