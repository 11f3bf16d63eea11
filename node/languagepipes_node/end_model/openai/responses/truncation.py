"""`truncation: auto`: which of a conversation's oldest messages are left out so that the rest fits the context.

Instructions and what the system says stay, the last user's message stays, and so does the last thing said after it.
A turn (a user's message and what answers it) is left out whole, and a call with its results: no template is given a
result without its call, or an answer without its question.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from languagepipes_node.end_model.openai.errors import ContextLengthExceeded
from languagepipes_node.end_model.openai.turns import PlacedMessage

_LEAST_ANSWER_TOKENS = 1024


def answer_room(max_output_tokens: int | None, *, context: int) -> int:
    """Tokens that a truncated conversation leaves for the answer."""
    return max_output_tokens or min(_LEAST_ANSWER_TOKENS, context // 4)


def parts_to_drop(placed: Sequence[PlacedMessage]) -> list[tuple[int, ...]]:
    """What may be left out, first the oldest: places of messages that stay or go together."""
    roles = [one.message.role for one in placed]
    last_user = max((place for place, role in enumerate(roles) if role == "user"), default=-1)
    before: list[list[int]] = []
    after: list[list[int]] = []
    for place, role in enumerate(roles):
        if role in ("system", "developer") or place == last_user:
            continue
        parts = before if place < last_user else after
        begins = role == "user" if place < last_user else role != "tool"
        if begins or not parts:
            parts.append([])
        parts[-1].append(place)
    return [tuple(part) for part in (*before, *after[:-1])]


async def truncated(
    placed: Sequence[PlacedMessage], *, most: int, count: Callable[[Sequence[PlacedMessage]], Awaitable[int]]
) -> tuple[PlacedMessage, ...]:
    """The conversation without as few of its oldest parts as lets its prompt have at most `most` tokens; without all of
    them if even that does not. count: the tokens of a prompt; raises ContextLengthExceeded for what is longer anyway.
    """
    parts = parts_to_drop(placed)

    def without(dropped: int) -> tuple[PlacedMessage, ...]:
        gone = {place for part in parts[:dropped] for place in part}
        return tuple(one for place, one in enumerate(placed) if place not in gone)

    async def fits(dropped: int) -> bool:
        try:
            return await count(without(dropped)) <= most
        except ContextLengthExceeded:
            return False

    if await fits(0):
        return tuple(placed)
    too_few, enough = 0, len(parts)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if await fits(middle):
            enough = middle
        else:
            too_few = middle
    return without(enough)
