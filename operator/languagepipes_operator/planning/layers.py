"""Splitting layers into contiguous ranges, exactly. Knows costs and limits, not what they mean.

Two passes: the least bound on a cost under which there is a split at all, by bisection; then, among the splits within
it, the one with the least sum of squares, by dynamic programming. A range that is allowed has only allowed parts, so
positions that can be reached are few intervals, and the best start of a range moves right as its stop does (the
squares fulfil the quadrangle inequality, F. F. Yao 1980): a row of n stops costs n log n.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
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
    ranges = _Ranges(costs, slots, first)
    total = ranges.sums[-1]
    if not ranges.reached(total)[-1]:
        return None
    low, high = max(max(costs), -(-total // len(slots))), total
    while low < high:
        middle = (low + high) // 2
        if ranges.reached(middle)[-1]:
            high = middle
        else:
            low = middle + 1
    cuts = _evenest(ranges, low)
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


# Positions between layers, 0 to the number of layers, as half-open intervals, ascending and apart.
_Positions = list[range]


class _Ranges:
    """Which ranges each slot may get. sums: what the layers before each position cost together."""

    def __init__(self, costs: Sequence[int], slots: Sequence[Slot], first: int) -> None:
        self.sums = [0, *accumulate(costs)]
        self.slots = slots
        self.count = len(costs)
        self._first = first
        limited = {slot.fits for slot in slots if slot.fits is not _always}
        self._kinds = {fits: cache(self._far(fits)) for fits in limited}
        self._blocked = {
            fits: tuple(place for place in range(self.count) if not fits(first + place, first + place + 1))
            for fits in limited
        }

    def stop_of(self, slot: Slot, start: int, limit: int) -> int:
        """The last stop of an allowed range from `start`; `start` itself if there is none. limit: of its cost."""
        stop = bisect_right(self.sums, self.sums[start] + limit) - 1
        far = self._kinds.get(slot.fits)
        return stop if far is None else min(stop, far(start))

    def reached(self, limit: int) -> list[_Positions]:
        """After each slot, where its range may stop such that the slots after it can still get a layer each; the last
        is not empty only if all layers can be covered. limit: of the cost of each range.
        """
        found: list[_Positions] = []
        here: _Positions = [range(1)]
        for place, slot in enumerate(self.slots):
            after = len(self.slots) - place - 1
            least = self.count if after == 0 else 0
            here = _within(self._next(slot, here, limit), least, self.count - after)
            found.append(here)
        return found

    def _next(self, slot: Slot, starts: _Positions, limit: int) -> Iterable[range]:
        if slot.exactly is not None:
            for start in (start for interval in starts for start in interval):
                stop = start + slot.exactly
                if stop <= self.count and self.stop_of(slot, start, limit) >= stop:
                    yield range(stop, stop + 1)
        else:
            # What is reached from neighbours touches, where each may have one layer.
            for interval in self._unblocked(slot, starts):
                yield range(interval.start + 1, self.stop_of(slot, interval.stop - 1, limit) + 1)

    def _unblocked(self, slot: Slot, starts: _Positions) -> Iterable[range]:
        """Without the positions at which not even one layer fits."""
        blocked = self._blocked.get(slot.fits, ())
        for interval in starts:
            begin = interval.start
            for position in blocked[bisect_left(blocked, begin) : bisect_left(blocked, interval.stop)]:
                if begin < position:
                    yield range(begin, position)
                begin = position + 1
            if begin < interval.stop:
                yield range(begin, interval.stop)

    def _far(self, fits: Callable[[int, int], bool]) -> Callable[[int], int]:
        first = self._first

        def far(start: int) -> int:
            free = LayerRange(first + start, first + self.count)
            return start + longest(free, most=len(free), fits=fits)

        return far


def _within(intervals: Iterable[range], least: int, most: int) -> _Positions:
    """The part of them in `[least, most]`, as intervals apart. intervals: by their start, ascending."""
    found: _Positions = []
    for each in intervals:
        start, stop = max(each.start, least), min(each.stop, most + 1)
        if start >= stop:
            continue
        if found and start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(stop, found[-1].stop))
        else:
            found.append(range(start, stop))
    return found


def _evenest(ranges: _Ranges, limit: int) -> list[int]:
    """The cuts `[0, …, number of layers]` of the split with the least sum of squares, no range above `limit`."""
    reached = [[stop for interval in here for stop in interval] for here in ranges.reached(limit)]
    starts = [0]
    best: dict[int, int] = {0: 0}
    chosen: list[dict[int, int]] = []
    for place, slot in enumerate(ranges.slots):
        cuts: dict[int, int] = {}
        stops = reached[place]
        after = len(ranges.slots) - place - 1
        # Layers that the slots to come cannot take, however they are split.
        needed = bisect_left(ranges.sums, ranges.sums[-1] - after * limit)
        stops = stops[bisect_left(stops, needed) :]
        sums = ranges.sums
        if slot.exactly is not None:
            for stop in stops:
                cuts[stop] = stop - slot.exactly
        else:
            far = [ranges.stop_of(slot, start, limit) for start in starts]
            _choose(starts, far, stops, best, sums, cuts)
        best = {stop: best[start] + (sums[stop] - sums[start]) ** 2 for stop, start in cuts.items()}
        starts = sorted(cuts)
        chosen.append(cuts)
    path = [ranges.count]
    for cuts in reversed(chosen):
        path.append(cuts[path[-1]])
    return path[::-1]


def _choose(
    starts: Sequence[int],
    far: Sequence[int],
    stops: Sequence[int],
    best: dict[int, int],
    sums: Sequence[int],
    cuts: dict[int, int],
) -> None:
    """For each stop the best start, in `cuts`; of equals the last. far: the last stop for each start."""
    # Of the stops between first and last, and the starts between low and high.
    pending = [(0, len(stops) - 1, 0, len(starts) - 1)]
    while pending:
        first, last, low, high = pending.pop()
        if first > last:
            continue
        middle = (first + last) // 2
        stop = stops[middle]
        found, place, until = -1, -1, sums[stop]
        # far ascends: the starts that reach the stop are the last of those before it.
        begin = max(low, bisect_left(far, stop))
        for index in range(min(high, bisect_left(starts, stop) - 1), begin - 1, -1):
            start = starts[index]
            total = best[start] + (until - sums[start]) ** 2
            if place < 0 or total < found:
                found, place = total, index
        if place < 0:
            # It was pruned away where its starts were: nothing is known of its neighbours.
            pending += [(first, middle - 1, low, high), (middle + 1, last, low, high)]
            continue
        cuts[stop] = starts[place]
        pending += [(first, middle - 1, low, place), (middle + 1, last, place, high)]
