"""What is drafted of a sequence from its own tokens."""

from __future__ import annotations

import random

import pytest
from languagepipes_node.end_model.drafting import LONGEST_MATCH, SHORTEST_MATCH, NgramDrafter


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [
        pytest.param([1, 2, 3, 4, 9, 1, 2], 2, (3, 4), id="what followed the last two where they stood before"),
        pytest.param([1, 2, 3, 4, 9, 1, 2], 9, (3, 4, 9, 1, 2, 3, 4, 9, 1), id="on behind the end, as if it repeated"),
        pytest.param([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], 1, (4,), id="the latest place"),
        pytest.param([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1, (3,), id="the place where more of them stood"),
        pytest.param([5, 5, 5], 4, (5, 5, 5, 5), id="one token again and again"),
        pytest.param([1, 2, 3, 2], 4, (), id="one token alone is no reason"),
        pytest.param([1, 2, 3, 4], 4, (), id="nothing stood there before"),
        pytest.param([1, 2, 1, 2], 0, (), id="none asked"),
        pytest.param([1], 4, (), id="one token"),
        pytest.param([], 4, (), id="no token"),
    ],
)
def test_a_draft_is_what_followed_the_last_tokens_before(
    tokens: list[int], most: int, expected: tuple[int, ...]
) -> None:
    assert NgramDrafter().draft(tokens, most) == expected


def _by_hand(tokens: list[int], most: int) -> tuple[int, ...]:
    """The same, token by token."""
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        end = tokens[-length:]
        for begin in range(len(tokens) - length - 1, -1, -1):
            if len(end) == length and tokens[begin : begin + length] == end:
                known = list(tokens)
                for index in range(most):
                    known.append(known[begin + length + index])
                return tuple(known[len(tokens) :])
    return ()


def test_a_growing_sequence_is_drafted_as_one_that_is_looked_at_once() -> None:
    chosen = random.Random(4)
    drafter, tokens = NgramDrafter(), []
    drafts = 0
    for _ in range(400):
        tokens.extend(chosen.choices(range(5), k=chosen.choice([1, 1, 1, 2, 7])))
        most = chosen.randrange(1, 9)
        drafted = drafter.draft(tokens, most)
        assert drafted == _by_hand(tokens, most)
        drafts += len(drafted)
    assert drafts > 400
