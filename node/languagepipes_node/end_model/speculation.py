"""Whether drafts of a sequence's next tokens are worth their rows. Pure: it knows neither frames nor blocks.

A frame that carries d drafts behind a sequence's last token verifies them all in one trip round the ring: 1 to d + 1
tokens come of it, where one would. It also takes longer, by what d rows cost. Of all drafts on offer, those are sent
with which the frame brings the most tokens a second, as in "Optimizing Speculative Decoding for Serving Large Language
Models Using Goodput" (Liu et al., 2024, arXiv:2406.14066).

How often a sequence's drafts are right is known without sending any: each is compared with the token that was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from languagepipes_node.end_model.drafting import NgramDrafter

# Of one sequence in one frame.
MOST_DRAFTED = 15
# A draft that is right less often than this is not sent, whatever a row is believed to cost.
LEAST_CHANCE = 0.1
# How many times the tokens a second must become; less is within the error of measured costs.
LEAST_GAIN = 1.03
# The part of its speed that each sequence of a frame keeps at least, whoever's drafts lengthen it.
LEAST_PACE = 0.9
# Every so many frames twice as many are sent as pay: a size that was measured in a bad moment is measured anew.
PROBE_EVERY = 32
# How much of the past counts after one more draft, and what is believed before the first: so many drafts, this share
# of which was right.
_MEMORY = 0.9
_PRIOR_WEIGHT = 1.0
_PRIOR_SHARE = 0.25


class Acceptance:
    """How often drafts of one sequence are right, the latest ones counting most."""

    def __init__(self) -> None:
        self._right = 0.0
        self._seen = 0.0

    def add(self, *, right: bool) -> None:
        """One draft behind tokens that were all known, or drafted rightly."""
        self._right = _MEMORY * self._right + right
        self._seen = _MEMORY * self._seen + 1.0

    @property
    def share(self) -> float:
        """In (0, 1)."""
        return (self._right + _PRIOR_WEIGHT * _PRIOR_SHARE) / (self._seen + _PRIOR_WEIGHT)


class Speculator:
    """One sequence's drafts, and how good they were."""

    def __init__(self) -> None:
        self._found, self._required = Acceptance(), Acceptance()
        self._is_required = False  # the draft that there is, by a grammar
        self._drafter = NgramDrafter()
        self._drafted_at = -1  # how many tokens were known
        self._draft: tuple[int, ...] = ()
        self._awaited: tuple[int, ...] = ()

    @property
    def acceptance(self) -> Acceptance:
        """Of drafts like the present one: those of a grammar are judged apart from what was found in the text."""
        return self._required if self._is_required else self._found

    def draft(
        self,
        tokens: Sequence[int],
        most: int,
        possible: Callable[[tuple[int, ...]], int],
        required: Callable[[], tuple[int, ...]] = tuple,
    ) -> tuple[int, ...]:
        """What may follow `tokens`, at most `most` (and MOST_DRAFTED) tokens. possible: how many of the tokens that it
        is given can follow at all. required: what a grammar requires to follow, if anything. Worked out once for each
        number of tokens."""
        if self._drafted_at != len(tokens):
            self._drafted_at = len(tokens)
            most = max(0, min(most, MOST_DRAFTED))
            draft = required()[:most]
            self._is_required = bool(draft)
            draft = draft or self._drafter.draft(tokens, most)
            self._draft = self._awaited = draft[: possible(draft)] if draft else ()
        return self._draft

    def sampled(self, token: int) -> None:
        """The next token is this one: it is what was drafted, or not."""
        if not self._awaited:
            return
        right = token == self._awaited[0]
        self.acceptance.add(right=right)
        self._awaited = self._awaited[1:] if right else ()


@dataclass(frozen=True)
class Offer:
    """What one sequence of a frame could add to it. chance: that a draft is right if those before it were. most:
    drafts."""

    chance: float
    most: int


def drafts_that_pay(
    offers: Sequence[Offer], *, most: int, seconds: Callable[[int], float], probe: bool = False
) -> list[int]:
    """How many drafts of each sequence to send. offers: one a sequence of the frame, each of which has one row in any
    case. most: drafts in all. seconds: between two frames of so many tokens. probe: send twice as many,
    if there are, and at least one."""
    chances = sorted(
        (
            (chance, index)
            for index, offer in enumerate(offers)
            for chance in accumulate([offer.chance] * offer.most, float.__mul__)
            if chance >= LEAST_CHANCE
        ),
        key=lambda one: (-one[0], one[1]),
    )[: max(0, most)]
    rows, sent = len(offers), 0
    alone = longest = seconds(rows)
    best, taken = LEAST_GAIN * rows / alone, 0
    tokens = [1.0] * rows  # expected of each sequence
    for count in _sizes(len(chances)):
        for chance, index in chances[sent:count]:
            tokens[index] += chance
        sent = count
        longest = max(longest, seconds(rows + count))  # a measurement that says otherwise is an error
        speed = sum(tokens) / longest
        if speed > best and min(tokens) * alone >= LEAST_PACE * longest:
            best, taken = speed, count
    if probe:
        taken = max(1, 2 * taken)
    counts = [0] * rows
    for _, index in chances[:taken]:
        counts[index] += 1
    return counts


def _sizes(most: int) -> Iterator[int]:
    """Numbers of drafts to look at, up to `most`: each small one, then steps of a third."""
    size = 1
    while size < most:
        yield size
        size = max(size + 1, size * 4 // 3)
    if most:
        yield most
