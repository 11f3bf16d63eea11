"""Splitting layers into contiguous ranges: exact, by dynamic programming. Knows costs and limits, not what
they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from languagepipes_api.plan import LayerRange


def _always(start: int, stop: int) -> bool:
    return True


@dataclass(frozen=True)
class Slot:
    """A place in the ring for one range of at least one layer.

    exactly: the number of layers it must get. fits(start, stop): whether it can hold that range; it must be
    monotone (whatever holds a range holds every part of it).
    """

    exactly: int | None = None
    fits: Callable[[int, int], bool] = _always


def split(costs: Sequence[int], slots: Sequence[Slot], *, first: int = 0) -> tuple[LayerRange, ...] | None:
    """Ranges that cover layers `[first, first + len(costs))` in order, one for each slot; None if there are
    none.

    Of all such splits: one whose costliest range is as cheap as possible; of those, one with the least sum of
    squared costs; of those, the one with the longer ranges in front. So neither one heavy range nor needless
    unevenness is left. `costs[0]` is layer `first`'s.
    """
    if not slots or len(costs) < len(slots):
        return None
    sums = [0, *accumulate(costs)]
    heaviest = _least(sums, slots, first, combine=max, weigh=lambda cost: cost, limit=None)
    if heaviest is None:
        return None
    # The costliest range of the first pass bounds the second, which decides among the equals.
    evenest = _least(
        sums,
        slots,
        first,
        combine=lambda done, new: done + new,
        weigh=lambda cost: cost * cost,
        limit=heaviest[0],
    )
    cuts = (evenest or heaviest)[1]
    return tuple(LayerRange(first + start, first + stop) for start, stop in pairwise(cuts))


def longest(available: LayerRange, *, most: int, fits: Callable[[int, int], bool], from_right: bool = False) -> int:
    """How many layers of `available`, at most `most`, fit when taken from its left (or right) end."""
    start, stop = available.start, available.stop
    low, high = 0, min(most, stop - start)
    while low < high:
        middle = (low + high + 1) // 2
        held = fits(stop - middle, stop) if from_right else fits(start, start + middle)
        low, high = (middle, high) if held else (low, middle - 1)
    return low


def _least(
    sums: Sequence[int],
    slots: Sequence[Slot],
    first: int,
    *,
    combine: Callable[[int, int], int],
    weigh: Callable[[int], int],
    limit: int | None,
) -> tuple[int, list[int]] | None:
    """The least combined weight over all splits with ranges of cost ≤ `limit`, and its cuts `[0, …,
    len(costs)]`.
    """
    layers = len(sums) - 1
    # best[stop]: the least weight of [0, stop) over the slots so far; cuts[slot][stop]: where its last range
    # starts.
    best: list[int | None] = [0] + [None] * layers
    cuts: list[list[int]] = []
    for index, slot in enumerate(slots):
        after = len(slots) - index - 1
        row: list[int | None] = [None] * (layers + 1)
        cut = [0] * (layers + 1)
        for stop in range(index + 1, layers - after + 1):
            for start in range(stop - 1, index - 1, -1):
                cost = sums[stop] - sums[start]
                found = row[stop]
                # Costs, weights and needs only grow as the range does: nothing further left can be better.
                if (limit is not None and cost > limit) or (found is not None and weigh(cost) >= found):
                    break
                if not slot.fits(first + start, first + stop) or (
                    slot.exactly is not None and stop - start > slot.exactly
                ):
                    break
                before = best[start]
                if before is None or (slot.exactly is not None and stop - start < slot.exactly):
                    continue
                total = combine(before, weigh(cost))
                if found is None or total < found:
                    row[stop], cut[stop] = total, start
        best = row
        cuts.append(cut)
    least = best[layers]
    if least is None:
        return None
    stop, path = layers, [layers]
    for cut in reversed(cuts):
        stop = cut[stop]
        path.append(stop)
    return least, path[::-1]
