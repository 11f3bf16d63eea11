"""What a frame costs at each member, as measured: a running estimate by number of tokens.

Every frame that returns brings each member's busy time. The estimate keeps one mean for each power of two
of tokens and reads between them on straight lines. How much context the tokens attend to is not looked at;
the means follow it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

# How much one new measurement counts in a mean.
_WEIGHT = 0.25
# Above this multiple of the largest frame measured, an estimate is a guess.
_TRUSTED_MULTIPLE = 2.0
# The largest frame of a ring that has not been measured.
FIRST_FRAME_TOKENS = 32
# Before anything is measured: a frame costs as much as this many tokens would, plus its tokens. Only ratios
# matter.
_PRIOR_TOKENS = 64.0


@dataclass
class _Mean:
    tokens: float
    seconds: float

    def add(self, tokens: float, seconds: float) -> None:
        self.tokens += _WEIGHT * (tokens - self.tokens)
        self.seconds += _WEIGHT * (seconds - self.seconds)


@dataclass
class MemberCost:
    """One member's compute seconds as a function of a frame's tokens."""

    _means: dict[int, _Mean] = field(default_factory=dict)
    _points: list[_Mean] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        return bool(self._points)

    @property
    def largest(self) -> float:
        """Tokens of the largest frames measured."""
        return self._points[-1].tokens if self._points else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        bucket = (max(1, tokens) - 1).bit_length()
        mean = self._means.get(bucket)
        if mean is None:
            self._means[bucket] = _Mean(float(tokens), seconds)
            self._points = [self._means[key] for key in sorted(self._means)]
        else:
            mean.add(tokens, seconds)

    def seconds(self, tokens: float) -> float:
        """The estimate. Below the smallest measured frame: what that costs (reading the weights dominates).
        Above the largest: in proportion, which errs on the long side."""
        points = self._points
        if not points:
            return (_PRIOR_TOKENS + tokens) * 1e-6
        if tokens <= points[0].tokens:
            return points[0].seconds
        for low, high in itertools.pairwise(points):
            if tokens <= high.tokens:
                share = (tokens - low.tokens) / max(high.tokens - low.tokens, 1e-9)
                return low.seconds + share * (high.seconds - low.seconds)
        return points[-1].seconds * tokens / points[-1].tokens


@dataclass
class RingCost:
    """All members of a ring: the End Model first, then the stages in ring order. Times in seconds.

    hops: a hop's own cost by a frame's tokens, once measured (wire, framing, wake-up). turns: how long a frame is the
    oldest on the ring, by its kind: (whether it is a replay, whether it was alone when it left). One that was alone
    goes all the way in this time; of those that follow each other closely it is what the slowest member or link takes,
    which no busy time shows if it is a link.
    """

    members: list[MemberCost]
    hops: MemberCost = field(default_factory=MemberCost)
    turns: dict[tuple[bool, bool], MemberCost] = field(default_factory=dict)

    @classmethod
    def of(cls, stages: int) -> RingCost:
        return cls([MemberCost() for _ in range(stages + 1)])

    @property
    def measured(self) -> bool:
        return all(member.measured for member in self.members)

    def add(self, tokens: int, busy_seconds: list[float]) -> None:
        """One frame's busy time a member, the End Model's first. Members after the last that computed are left out."""
        for member, seconds in zip(self.members, busy_seconds, strict=False):
            member.add(tokens, seconds)

    def add_hop(self, tokens: int, seconds: float) -> None:
        """What each hop of a frame took that was alone on the ring, besides compute."""
        self.hops.add(tokens, seconds)

    def add_turn(self, tokens: int, seconds: float, *, replay: bool, alone: bool) -> None:
        """From when a frame was the oldest on the ring (sent, or the one before it returned) until it returned."""
        self.turns.setdefault((replay, alone), MemberCost()).add(tokens, seconds)

    def forget(self, members: Iterable[int]) -> None:
        """Other machines may stand in these places now: nothing is known of them, nor of the links to them."""
        for member in members:
            self.members[member] = MemberCost()
        self.hops, self.turns = MemberCost(), {}

    def slowest(self, tokens: float) -> float:
        """t_max: the busiest member's time for one frame."""
        return max(member.seconds(tokens) for member in self.members)

    def round(self, tokens: float) -> float:
        """T: one frame's way round an otherwise empty ring."""
        busy = sum(member.seconds(tokens) for member in self.members)
        hop = self.hops.seconds(tokens) if self.hops.measured else 0.0
        return busy + hop * len(self.members)

    def expected(self, tokens: int, *, replay: bool = False, alone: bool = True) -> float | None:
        """How long a frame takes once it is the oldest on the ring; None unless frames of comparable size, and of its
        kind, were measured.
        """
        for was_alone in (True,) if alone else (False, True):  # going all the way takes no less than a turn
            turns = self.turns.get((replay, was_alone))
            if turns is not None and tokens <= _TRUSTED_MULTIPLE * min(turns.largest, self._largest):
                return max(self.round(tokens), turns.seconds(tokens))
        return None

    @property
    def _largest(self) -> float:
        """Tokens of the largest frames that every member was measured with."""
        return min(member.largest for member in self.members)

    def largest_frame(self, *, replay: bool = False) -> int:
        """The most tokens that a frame may have now: sizes grow by doubling from FIRST_FRAME_TOKENS, so that no frame's
        time is a guess. (A ring that is slow by ten times would otherwise be given up for its first long prompt.)"""
        measured = self._largest
        if self.turns:
            kinds = (self.turns.get((replay, alone)) for alone in (True, False))
            measured = min(measured, max(turns.largest if turns else 0.0 for turns in kinds))
        return max(FIRST_FRAME_TOKENS, int(_TRUSTED_MULTIPLE * measured))

    def micro_batches(self, rows: int, *, most: int) -> int:
        """How many decode micro-batches to keep in flight for `rows` rows: the m that minimises one token's
        time, max(T(rows / m), m · t_max(rows / m)); the smallest of equals. 1 until costs are measured."""
        most = min(most, rows)
        if most <= 1 or not self.measured:
            return 1

        def period(micro_batches: int) -> float:
            share = -(-rows // micro_batches)
            return max(self.round(share), micro_batches * self.slowest(share))

        return min(range(1, most + 1), key=lambda m: (period(m), m))

    def tokens_within(self, seconds_by_member: list[float], *, most: int) -> int:
        """The most tokens whose frame keeps every member within its limit; 0 if not even one token does."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            fits = all(
                member.seconds(middle) <= limit for member, limit in zip(self.members, seconds_by_member, strict=True)
            )
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def best_chunk(self, tokens: int, *, most: int, in_flight: int) -> int:
        """The chunk size that finishes `tokens` prompt tokens first when chunks follow each other round the
        ring: n chunks over k members take (n + k - 1) · t_max(tokens / n)."""
        if in_flight <= 1 or tokens <= 1:
            return most
        fewest = -(-tokens // most)
        members = len(self.members)
        candidates = range(fewest, max(fewest, min(tokens, fewest + 2 * members)) + 1)

        def seconds(chunks: int) -> float:
            size = -(-tokens // chunks)
            # No more chunks than may be in flight overlap.
            overlap = min(members, in_flight)
            return (chunks / overlap * members + members - members / overlap) * self.slowest(size)

        best = min(candidates, key=lambda n: (seconds(n), n))
        return min(most, -(-tokens // best))
