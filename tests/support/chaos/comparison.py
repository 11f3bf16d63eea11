"""Whether an answer is that of the undisturbed run: equal in float32, and in bfloat16 equal but for rounding.

In bfloat16 a token's numbers depend on who shares its frames, with faults or without: another number of rows is another
kernel with roundings elsewhere. So an answer is followed token by token. As long as the tokens are the same, the two
answers are about the same text, and log-probabilities may differ by `BFLOAT16_BOUND` at most. The first token that
differs must be one whose margin in the undisturbed run is within what two such moves explain. After it the two are
answers about different texts, and only their form can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from support.chaos.model import Dtype
from support.chaos.requests import Answer, Choice, ScoredToken

# Farther than two float32 runs that pack different rows together are apart, and a tenth of what one lost key moves.
FLOAT32_BOUND = 2e-3
# 32 unit roundoffs of bfloat16, which has 8 significant bits. Members compute in float32 (see fork_server.py) and round
# hidden states at links, and keys and values in the cache. Where company or another kernel moves a float32 result
# across the middle between two neighbours, the bfloat16 value moves by one step, up to 2 unit roundoffs of it; the
# layers behind add up a few such steps.
# Measured: the same 100 requests five times undisturbed, 16 at a time in other orders, over four starts of a replica,
# two of them with other kernels. After 101,754 equal prefixes a log-probability was off by 0.0005 in the median, 0.025
# at p99.9 and 0.051 at most; 77 of 1,000 pairs of answers parted, with margins of 0.014 at most. The bound is 2.4 times
# the most, for runs that compare more tokens than that.
# What it has to show: with one key of stage 1's first layer zeroed after prefill, 66 of 100 answers failed (off by 0.17
# in the median, 0.59 at most); with a block of 16 tokens zeroed in both layers of the stage, 93 of 100 (0.78 and 2.3).
BFLOAT16_BOUND = 32 * 2**-8


@dataclass(frozen=True)
class Comparison:
    """problem: what is wrong with the answer, None if nothing is.

    equal: every text is the undisturbed one. compared_tokens: all of them, or up to the first that differs within the
    bound. moved: by how much a log-probability is off, the most of each of these tokens that has any.
    """

    problem: str | None
    equal: bool
    compared_tokens: int
    moved: list[float] = field(default_factory=list)


def compare(expected: Answer, found: Answer, dtype: Dtype) -> Comparison:
    """An answer beside the one that the same request got undisturbed."""
    equal = [choice.text for choice in found.choices] == [choice.text for choice in expected.choices]
    problem = _wrong_count(expected, found, dtype)
    judge = _float32 if dtype == "float32" else _bfloat16
    moved: list[float] = []
    compared = 0
    for number, (ours, theirs) in enumerate(zip(found.choices, expected.choices, strict=True)):
        if problem is not None:
            break
        wrong, length = judge(ours, theirs, moved)
        compared += length
        problem = None if wrong is None else f"choice {number} {wrong}"
    return Comparison(problem, equal, compared, moved)


def _wrong_count(expected: Answer, found: Answer, dtype: Dtype) -> str | None:
    # How much of a prompt was known depends on what came before.
    ours, theirs = ({**usage, "prompt_tokens_details": None} for usage in (found.usage, expected.usage))
    if ours != theirs:
        return f"usage {found.usage}, not {expected.usage}"
    scored, tokens = sum(len(choice.scored) for choice in found.choices), found.usage["completion_tokens"]
    if dtype == "bfloat16" and scored != tokens:
        return f"{scored} log-probabilities for {tokens} tokens"
    return None


def _float32(ours: Choice, theirs: Choice, moved: list[float]) -> tuple[str | None, int]:
    """What is wrong and the number of tokens compared. moved: grows by what is seen."""
    if ours.text != theirs.text:
        return _other_text(ours, theirs), 0
    if ours.finish != theirs.finish:
        return f"ends by {ours.finish}, not {theirs.finish}", 0
    if [each.token for each in ours.scored] != [each.token for each in theirs.scored]:
        return "has log-probabilities of other tokens", 0
    own = [_moved(a, b) for a, b in zip(ours.scored, theirs.scored, strict=True)]
    moved += own
    if (off := max(own, default=0.0)) > FLOAT32_BOUND:
        return f"has a log-probability that is off by {off:.2g}, more than {FLOAT32_BOUND}", len(theirs.text)
    return None, len(theirs.text)


def _bfloat16(ours: Choice, theirs: Choice, moved: list[float]) -> tuple[str | None, int]:
    """As `_float32`. A token is one character, so texts and log-probabilities show a token that is missing."""
    if ours.finish != theirs.finish:
        return f"ends by {ours.finish}, not {theirs.finish}", 0
    if ours.text != "".join(each.token for each in ours.scored):
        return f"is a text of {len(ours.text)} characters with log-probabilities of other tokens", 0
    if len(ours.scored) != len(theirs.scored):
        return f"has {len(ours.scored)} tokens, not {len(theirs.scored)}", 0
    for place, (a, b) in enumerate(zip(ours.scored, theirs.scored, strict=True)):
        if a.token != b.token and (margin := _margin(b, a.token)) > 2 * BFLOAT16_BOUND:
            return f"{_other_text(ours, theirs)}; its margin is {margin:.2g}, more than {2 * BFLOAT16_BOUND}", place
        moved.append(off := _moved(a, b))
        if off > BFLOAT16_BOUND:
            return f"has a log-probability at token {place} that is off by {off:.2g}, more than {BFLOAT16_BOUND}", place
        if a.token != b.token:
            return None, place + 1
    return None, len(theirs.text)


def _margin(undisturbed: ScoredToken, other: str) -> float:
    """By how much the undisturbed run preferred its token. At least so much, if `other` is not among its likeliest."""
    return undisturbed.logprob - undisturbed.top.get(other, min(undisturbed.top.values(), default=-math.inf))


def _moved(ours: ScoredToken, theirs: ScoredToken) -> float:
    """The most that a log-probability which both report is off, after the same prefix."""
    a, b = ({**each.top, each.token: each.logprob} for each in (ours, theirs))
    return max((abs(a[token] - b[token]) for token in a.keys() & b.keys()), default=0.0)


def _other_text(ours: Choice, theirs: Choice) -> str:
    place = next(
        (at for at, (a, b) in enumerate(zip(ours.text, theirs.text, strict=False)) if a != b),
        min(len(ours.text), len(theirs.text)),
    )
    near = slice(max(0, place - 8), place + 8)
    return (
        f"differs from token {place} of {len(theirs.text)} (got {len(ours.text)}): "
        f"{ours.text[near]!r}, not {theirs.text[near]!r}"
    )
