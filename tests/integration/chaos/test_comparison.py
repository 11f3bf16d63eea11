"""Which answers count as the undisturbed one. A comparison that cannot fail would prove nothing of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.chaos.comparison import BFLOAT16_BOUND, FLOAT32_BOUND, compare
from support.chaos.requests import Answer, Choice, ScoredToken


def _scored(token: str, logprob: float, **others: float) -> ScoredToken:
    return ScoredToken(token, logprob, {token: logprob, **others})


# At the second token "x" is nearly as likely as "b"; at the third it is not.
UNDISTURBED = [
    _scored("a", -0.1, x=-2.0, y=-3.0),
    _scored("b", -0.8, x=-0.8 - BFLOAT16_BOUND, y=-4.0),
    _scored("c", -0.2, x=-1.9, y=-2.5),
]


def _answer(scored: list[ScoredToken], *, finish: str = "length", **changes: Any) -> Answer:
    choice = Choice("".join(each.token for each in scored), finish, scored)
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return replace(Answer([choice], usage, longest_pause_seconds=0.0, pings=0), **changes)


def test_the_same_answer_is_equal_token_by_token() -> None:
    found = compare(_answer(UNDISTURBED), _answer(UNDISTURBED), "bfloat16")

    assert (found.problem, found.equal, found.compared_tokens, found.moved) == (None, True, 3, [0.0, 0.0, 0.0])


def test_another_token_within_the_bound_ends_the_comparison() -> None:
    rounded = _scored("x", -0.8 - BFLOAT16_BOUND / 2, b=-0.8 - BFLOAT16_BOUND * 0.6)
    another_text = _scored("q", -0.1, r=-7.0)

    found = compare(_answer(UNDISTURBED), _answer([UNDISTURBED[0], rounded, another_text]), "bfloat16")

    assert (found.problem, found.equal, found.compared_tokens) == (None, False, 2)
    assert max(found.moved) == pytest.approx(BFLOAT16_BOUND * 0.6)


def test_the_same_other_token_is_no_answer_in_float32() -> None:
    rounded = _scored("x", -0.8 - BFLOAT16_BOUND / 2)

    found = compare(_answer(UNDISTURBED), _answer([UNDISTURBED[0], rounded, UNDISTURBED[2]]), "float32")

    assert found.problem == "choice 0 differs from token 1 of 3 (got 3): 'axc', not 'abc'"


@pytest.mark.parametrize(
    ("second", "third", "what"),
    [
        (UNDISTURBED[1], _scored("x", -1.0, c=-1.1), "margin is 1.7"),
        # Not among the likeliest: the margin is that of the last of them at least.
        (_scored("q", -0.9), UNDISTURBED[2], "margin is 3.2"),
        (_scored("b", -0.8 - 1.1 * BFLOAT16_BOUND), UNDISTURBED[2], "token 1 that is off by 0.14"),
        # The token that was taken is as likely as before, but not the one beside it.
        (_scored("b", -0.8, y=-4.2), UNDISTURBED[2], "token 1 that is off by 0.2"),
        # The second token twice, and what followed it behind.
        (UNDISTURBED[1], UNDISTURBED[1], "margin is 2.3"),
        (UNDISTURBED[2], _scored("d", -0.1), "margin is 3.2"),  # a token is missing
    ],
)
def test_what_rounding_does_not_explain_is_a_problem(second: ScoredToken, third: ScoredToken, what: str) -> None:
    found = compare(_answer(UNDISTURBED), _answer([UNDISTURBED[0], second, third]), "bfloat16")

    assert found.problem is not None
    assert what in found.problem


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (_answer(UNDISTURBED, finish="stop"), "choice 0 ends by stop, not length"),
        (_answer(UNDISTURBED[:2]), "2 log-probabilities for 3 tokens"),
        (_answer([*UNDISTURBED, UNDISTURBED[2]]), "4 log-probabilities for 3 tokens"),
        (_answer(UNDISTURBED, usage={"completion_tokens": 2}), "usage {'completion_tokens': 2}, not"),
        (_answer(UNDISTURBED, choices=[Choice("ab", "length", UNDISTURBED)]), "text of 2 characters"),
        (_answer(UNDISTURBED, choices=[Choice("abcc", "length", UNDISTURBED)]), "text of 4 characters"),
    ],
)
def test_a_malformed_answer_is_a_problem_in_bfloat16_too(found: Answer, what: str) -> None:
    problem = compare(_answer(UNDISTURBED), found, "bfloat16").problem

    assert problem is not None
    assert what in problem


def test_what_comes_after_the_token_that_rounding_changed_is_still_counted() -> None:
    rounded = _scored("x", -0.8 - BFLOAT16_BOUND / 2)

    found = compare(_answer(UNDISTURBED), _answer([UNDISTURBED[0], rounded]), "bfloat16")

    assert found.problem == "2 log-probabilities for 3 tokens"


def test_a_log_probability_in_float32_has_a_bound_of_its_own() -> None:
    moved = replace(UNDISTURBED[1], logprob=-0.8 - 1.1 * FLOAT32_BOUND)

    found = compare(_answer(UNDISTURBED), _answer([UNDISTURBED[0], moved, UNDISTURBED[2]]), "float32")

    assert found.problem == "choice 0 has a log-probability that is off by 0.0022, more than 0.002"
