"""Who is started again, when, and who is given up."""

from __future__ import annotations

import pytest
from languagepipes_api.termination import Termination
from languagepipes_operator.cli.up.restarts import STEADY_SECONDS, TRIES, Lives, backoff_seconds, restart_in_seconds

WRONG_TOKENIZER = Termination("InvalidSettings", "tokenizer.json is no JSON: publish it again")
NO_MEMORY = Termination("OutOfMemory", "the process got no more memory: give it more")


def pauses(ready_seconds: list[float | None], termination: Termination | None = None) -> list[float | None]:
    """The pause after each of these lives; None in the list of lives: it was never ready."""
    lives, found = Lives(), []
    for seconds in ready_seconds:
        lives = lives.and_one(ready_seconds=seconds)
        found.append(restart_in_seconds(lives, termination, was_ready=seconds is not None))
    return found


def test_back_off_doubles_up_to_half_a_minute() -> None:
    assert [backoff_seconds(failures) for failures in (1, 2, 3, 4, 7, 8, 9, 100)] == [
        0.0, 0.5, 1.0, 2.0, 16.0, 30.0, 30.0, 30.0,
    ]  # fmt: skip


@pytest.mark.parametrize("termination", [None, NO_MEMORY, Termination("OfANewerNode", "unknown")])
def test_a_member_that_never_becomes_ready_is_given_up_after_a_few_tries_with_growing_pauses(
    termination: Termination | None,
) -> None:
    assert pauses([None] * TRIES, termination) == [0.0, 0.5, 1.0, 2.0, 4.0, None]


def test_a_member_that_says_that_no_restart_helps_is_given_up_at_once() -> None:
    assert pauses([None], WRONG_TOKENIZER) == [None]
    assert pauses([60.0, None], WRONG_TOKENIZER) == [0.0, None]


def test_whatever_ends_a_member_that_was_ready_it_is_started_again() -> None:
    assert pauses([0.0], WRONG_TOKENIZER) == [0.0]
    assert None not in pauses([STEADY_SECONDS] * 1000)
    assert pauses([STEADY_SECONDS] * 3) == [0.0, 0.0, 0.0]


def test_a_member_that_falls_again_soon_waits_longer_but_is_never_given_up() -> None:
    assert pauses([1.0] * 10) == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert pauses([1.0, *[None] * 10])[-1] == 30.0
    assert pauses([1.0, 1.0, STEADY_SECONDS, 1.0]) == [0.0, 0.5, 0.0, 0.5]


def test_a_member_that_is_ready_at_the_last_try_has_every_try_again() -> None:
    assert pauses([*[None] * (TRIES - 1), STEADY_SECONDS, *[None] * TRIES])[-1] == 16.0
