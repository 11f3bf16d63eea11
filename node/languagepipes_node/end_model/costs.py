"""What a frame costs at each member, as measured: a running estimate by number of tokens and by what they attend to.

Every frame that returns brings each member's busy time. The estimate keeps one mean for each power of two
of tokens and reads between them on straight lines. What a pair of a token and one that it attends to costs is
estimated from frames of similar size and other contexts; by it a mean is moved to the context that is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
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


# Frames of fewer tokens are not looked at for what a pair costs: it is lost beside what they cost anyway.
_PAIRS_TELL_FROM = 16
# How much one frame counts in the cost of a pair: noise of one frame is as large as what its context explains.
_PAIR_WEIGHT = 0.02
# Contexts that differ by less than this tell next to nothing.
_CONTEXT_NOISE_TOKENS = 64.0
# A frame without context costs at least this share of what frames of its size cost in the mean.
_LEAST_SHARE = 0.25


@dataclass
class _Mean:
    tokens: float
    seconds: float
    pairs: float

    def add(self, tokens: float, seconds: float, pairs: float) -> None:
        self.tokens += _WEIGHT * (tokens - self.tokens)
        self.seconds += _WEIGHT * (seconds - self.seconds)
        self.pairs += _WEIGHT * (pairs - self.pairs)


@dataclass
class _PairCost:
    """Seconds for a pair of a token and one that it attends to: the slope of seconds a token over tokens of context,
    by weighted least squares within frames of similar size, older ones counting less and less."""

    _centres: dict[int, tuple[int, float, float]] = field(default_factory=dict)  # frames, context, seconds a token
    _variance: float = 0.0
    _covariance: float = 0.0

    @property
    def seconds(self) -> float:
        return max(0.0, self._covariance / self._variance) if self._variance else 0.0

    def add(self, bucket: int, tokens: int, seconds: float, pairs: float) -> None:
        """seconds: of the frame, without what a frame costs that has hardly any tokens."""
        context, each = pairs / tokens, seconds / tokens
        frames, mean_context, mean_each = self._centres.get(bucket, (0, context, each))
        off = context - mean_context
        # What took more than twice as long was held up by something else.
        off_each = min(each, 2 * mean_each) - mean_each
        weight = max(_PAIR_WEIGHT, 1 / (frames + 1))
        self._centres[bucket] = (frames + 1, mean_context + weight * off, mean_each + weight * off_each)
        if off:
            fade = 1 - _PAIR_WEIGHT
            self._variance = fade * self._variance + tokens * (off**2 + _CONTEXT_NOISE_TOKENS**2)
            self._covariance = fade * self._covariance + tokens * off * off_each


@dataclass
class MemberCost:
    """One member's compute seconds as a function of a frame's tokens, and of its pairs: over all its tokens, how many
    tokens each attends to. A frame's pairs are the mean of frames of its size if they are not given."""

    _means: dict[int, _Mean] = field(default_factory=dict)
    _points: list[_Mean] = field(default_factory=list)
    _pair: _PairCost = field(default_factory=_PairCost)

    @property
    def measured(self) -> bool:
        return bool(self._points)

    @property
    def largest(self) -> float:
        """Tokens of the largest frames measured."""
        return self._points[-1].tokens if self._points else 0.0

    @property
    def pair_seconds(self) -> float:
        return self._pair.seconds

    def add(self, tokens: int, seconds: float, pairs: float = 0.0) -> None:
        bucket = (max(1, tokens) - 1).bit_length()
        if tokens >= _PAIRS_TELL_FROM and pairs:
            least = min(self._points[0].seconds, seconds) if self._points else 0.0
            self._pair.add(bucket, tokens, seconds - least, pairs)
        mean = self._means.get(bucket)
        if mean is None:
            self._means[bucket] = _Mean(float(tokens), seconds, pairs)
            self._points = [self._means[key] for key in sorted(self._means)]
        else:
            mean.add(tokens, seconds, pairs)

    def seconds(self, tokens: float, pairs: float | None = None) -> float:
        """The estimate. Below the smallest measured frame: what that costs (reading the weights dominates).
        Above the largest: in proportion, which errs on the long side."""
        points = self._points
        if not points:
            return (_PRIOR_TOKENS + tokens) * 1e-6
        mean = self._mean(tokens)
        if pairs is None:
            return mean.seconds
        moved = mean.seconds + self._pair.seconds * (pairs - mean.pairs)
        return max(moved, _LEAST_SHARE * mean.seconds, min(points[0].seconds, mean.seconds))

    def _mean(self, tokens: float) -> _Mean:
        """Of frames of so many tokens, read between the means that there are."""
        points = self._points
        if tokens <= points[0].tokens:
            return points[0]
        for low, high in itertools.pairwise(points):
            if tokens <= high.tokens:
                share = (tokens - low.tokens) / max(high.tokens - low.tokens, 1e-9)
                return _Mean(
                    tokens,
                    low.seconds + share * (high.seconds - low.seconds),
                    low.pairs + share * (high.pairs - low.pairs),
                )
        last, times = points[-1], tokens / points[-1].tokens
        return _Mean(tokens, times * last.seconds, times * last.pairs)


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

    def add(self, tokens: int, busy_seconds: list[float], pairs: float = 0.0) -> None:
        """One frame's busy time a member, the End Model's first. Members after the last that computed are left out.
        pairs: over all its tokens, how many tokens each attends to; 0 if that is not known."""
        for member, seconds in zip(self.members, busy_seconds, strict=False):
            member.add(tokens, seconds, pairs)

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

    def slowest(self, tokens: float, pairs: float | None = None) -> float:
        """t_max: the busiest member's time for one frame."""
        return max(member.seconds(tokens, pairs) for member in self.members)

    def round(self, tokens: float, pairs: float | None = None) -> float:
        """T: one frame's way round an otherwise empty ring."""
        busy = sum(member.seconds(tokens, pairs) for member in self.members)
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
            return self.period(-(-rows // micro_batches), micro_batches)

        return min(range(1, most + 1), key=lambda m: (period(m), m))

    def period(self, tokens: float, micro_batches: int) -> float:
        """Between two frames of one stream, with so many of so many tokens in flight."""
        return max(self.round(tokens), micro_batches * self.slowest(tokens))

    @staticmethod
    def most_tokens(fits: Callable[[int], bool], *, most: int) -> int:
        """The most tokens, up to `most`, whose frame fits; 0 if not even one token does. A smaller frame than one that
        fits is taken to fit."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
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
