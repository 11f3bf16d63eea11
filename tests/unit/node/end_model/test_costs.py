"""What frames cost, as estimated from those that returned."""

from __future__ import annotations

import random

import pytest
from languagepipes_node.end_model.costs import MemberCost


def _true_seconds(tokens: int, context: float) -> float:
    return 0.008 + tokens * (100e-6 + 80e-9 * context)


def _prompts(cost: MemberCost, *, sizes: tuple[int, ...], prompts: int, noise: float = 0.0) -> None:
    """Prompts of 3,600 tokens in chunks of such sizes, as a ring measures them."""
    draw = random.Random(1)
    cost.add(1, 0.008, 100.0)
    for number in range(prompts):
        size = sizes[number % len(sizes)]
        for start in range(0, 3600, size):
            context = start + size / 2
            factor = 1 + noise * draw.choice([0, 0, 0, 1, -0.3])
            cost.add(size, factor * _true_seconds(size, context), size * context)


@pytest.mark.parametrize("context", [0, 1000, 3500])
def test_the_estimate_follows_the_context_that_is_asked_for(context: int) -> None:
    cost = MemberCost()
    _prompts(cost, sizes=(512, 128), prompts=4)
    assert cost.seconds(128, 128 * context) == pytest.approx(_true_seconds(128, context), rel=0.1)
    assert cost.seconds(512, 512 * context) == pytest.approx(_true_seconds(512, context), rel=0.1)


def test_frames_that_something_held_up_do_not_pass_for_the_cost_of_context() -> None:
    cost = MemberCost()
    _prompts(cost, sizes=(64,), prompts=6, noise=1.0)
    assert cost.pair_seconds == pytest.approx(80e-9, rel=0.6)


def test_without_a_context_it_is_the_mean_of_frames_of_that_size() -> None:
    cost = MemberCost()
    cost.add(512, 0.2, 512 * 1000)
    assert cost.seconds(512) == 0.2


def test_frames_of_one_context_say_nothing_about_what_context_costs() -> None:
    cost = MemberCost()
    for seconds in (0.2, 0.1, 0.3):
        cost.add(512, seconds, 512 * 1000)
    assert cost.pair_seconds == 0


def test_an_estimate_stays_above_a_share_of_the_mean_whatever_a_pair_seems_to_cost() -> None:
    cost = MemberCost()
    for context in (1000, 3000) * 10:
        cost.add(512, 1e-4 * context, 512 * context)
    assert cost.seconds(512, 0.0) >= 0.25 * cost.seconds(512) > 0
