"""The split of layers: a partition, within its limits, and no better one exists."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_api.plan import LayerRange
from languagepipes_operator.planning.layers import Slot, longest, split

costs_strategy = st.lists(st.integers(0, 20), min_size=1, max_size=9)


def every_split(costs: list[int], slots: list[Slot], first: int) -> Iterator[tuple[LayerRange, ...]]:
    layers = len(costs)
    for cuts in combinations(range(1, layers), len(slots) - 1):
        ranges = tuple(LayerRange(first + start, first + stop) for start, stop in pairwise([0, *cuts, layers]))
        if all(
            (slot.exactly is None or len(layers) == slot.exactly) and slot.fits(layers.start, layers.stop)
            for slot, layers in zip(slots, ranges, strict=True)
        ):
            yield ranges


def weights(costs: list[int], ranges: tuple[LayerRange, ...], first: int) -> tuple[int, int]:
    sums = [sum(costs[layers.start - first : layers.stop - first]) for layers in ranges]
    return max(sums), sum(cost * cost for cost in sums)


@settings(max_examples=400, deadline=None)
@given(
    costs=costs_strategy,
    limits=st.lists(st.tuples(st.none() | st.integers(1, 4), st.none() | st.integers(0, 40)), min_size=1, max_size=5),
    first=st.integers(0, 3),
)
def test_a_split_is_the_best_of_all_splits(
    costs: list[int], limits: list[tuple[int | None, int | None]], first: int
) -> None:
    def slot(exactly: int | None, most: int | None) -> Slot:
        if most is None:
            return Slot(exactly)
        return Slot(exactly, lambda start, stop: sum(costs[start - first : stop - first]) <= most)

    slots = [slot(exactly, most) for exactly, most in limits]
    possible = list(every_split(costs, slots, first)) if len(slots) <= len(costs) else []

    found = split(costs, slots, first=first)

    if found is None:
        assert not possible
    else:
        assert found in possible
        assert weights(costs, found, first) == min(weights(costs, ranges, first) for ranges in possible)


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"),
    [(30, 3, [10, 10, 10]), (28, 3, [10, 9, 9]), (10, 4, [3, 3, 2, 2]), (3, 3, [1, 1, 1]), (36, 5, [8, 7, 7, 7, 7])],
)
def test_equal_layers_are_shared_out_evenly_with_the_longer_ranges_in_front(
    layers: int, stages: int, sizes: list[int]
) -> None:
    ranges = split([7] * layers, [Slot()] * stages) or ()

    assert [len(layers) for layers in ranges] == sizes


def test_there_is_no_split_of_fewer_layers_than_stages() -> None:
    assert split([1, 1], [Slot()] * 3) is None
    assert split([1], []) is None


@given(costs=costs_strategy, most=st.integers(0, 10), budget=st.integers(0, 60), from_right=st.booleans())
def test_the_longest_range_fits_and_one_layer_more_does_not(
    costs: list[int], most: int, budget: int, from_right: bool
) -> None:
    def taken(count: int) -> int:
        return sum(costs[len(costs) - count :] if from_right else costs[:count])

    count = longest(
        LayerRange(0, len(costs)),
        most=most,
        fits=lambda start, stop: sum(costs[start:stop]) <= budget,
        from_right=from_right,
    )

    assert count <= min(most, len(costs))
    assert taken(count) <= budget or count == 0
    assert count == min(most, len(costs)) or taken(count + 1) > budget


def test_the_largest_models_are_split_without_a_noticeable_wait() -> None:
    started = time.process_time()

    assert split([1000 + layer % 7 for layer in range(130)], [Slot()] * 64) is not None

    assert time.process_time() - started < 2
