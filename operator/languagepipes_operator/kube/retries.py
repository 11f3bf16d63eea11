"""How long to wait before the next try, and which requests to the API server are tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from languagepipes_operator.kube.errors import Broken, Unavailable

ATTEMPTS = 5
# Of what may stay for ever, and may take ten seconds a try: a webhook that does not answer.
_BROKEN_ATTEMPTS = 2
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 8.0
# A server that asks for more than this is left alone by the queue's back-off instead.
_LONGEST_RETRY_AFTER_SECONDS = 30.0

Answer = TypeVar("Answer")


def back_off(attempt: int, *, first: float, longest: float) -> float:
    """Seconds before try number `attempt` + 1 (the first is 0): doubling, with up to half of it left to chance."""
    whole = min(longest, first * 2.0 ** min(attempt, 32))
    return whole * random.uniform(0.5, 1.0)  # noqa: S311


async def with_retries(once: Callable[[], Awaitable[Answer]], attempts: int) -> Answer:
    """What `once` returns; Unavailable is tried again, as late as the server asked for."""
    for attempt in range(attempts):
        try:
            return await once()
        except Unavailable as error:
            most = min(attempts, _BROKEN_ATTEMPTS) if isinstance(error, Broken) else attempts
            if attempt + 1 >= most or (error.retry_after_seconds or 0) > _LONGEST_RETRY_AFTER_SECONDS:
                raise
            delay = back_off(attempt, first=_FIRST_DELAY_SECONDS, longest=_LONGEST_DELAY_SECONDS)
            await asyncio.sleep(max(delay, error.retry_after_seconds or 0))
    raise AssertionError("attempts is at least 1")
