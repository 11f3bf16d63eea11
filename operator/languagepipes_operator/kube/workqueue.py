"""A keyed queue: a key waits at most once, is worked on by one worker at a time, and backs off on its own.

A key whose work was slow the last time is left to workers of their own: however many such keys there are, and whatever
they wait for (a webhook that does not answer, say), they hold up each other and no other key.

Knows nothing of what the keys are or what the work is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from languagepipes_operator.kube.retries import back_off

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """Work returns in how many seconds it wants to be called again at the latest (None: when something happens), or
    raises; then the key comes back after a delay that doubles with each failure in a row, to at most `longest`. Work
    that took longer than `slow_seconds` was slow, whatever came of it.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        *,
        first_delay_seconds: float = 0.5,
        longest_delay_seconds: float = 60.0,
        slow_seconds: float = 5.0,
        on_failure: Callable[[Key, Exception, float], None] = lambda key, error, seconds: None,
        on_depth: Callable[[int], None] = lambda depth: None,
    ) -> None:
        self._work = work
        self._first = first_delay_seconds
        self._longest = longest_delay_seconds
        self._slow_seconds = slow_seconds
        self._on_failure = on_failure
        self._on_depth = on_depth
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._ready_slow: asyncio.Queue[Key] = asyncio.Queue()
        self._slow: set[Key] = set()
        self._waiting: set[Key] = set()
        self._working: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._later: dict[Key, asyncio.TimerHandle] = {}

    def add(self, key: Key) -> None:
        """As soon as a worker is free; a key that is worked on now comes again after that."""
        self._cancel(key)
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._put(key)
        self._on_depth(len(self._waiting))

    def add_after(self, key: Key, seconds: float) -> None:
        """Unless it comes sooner for another reason."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, seconds)
        planned = self._later.get(key)
        if key in self._waiting or (planned is not None and planned.when() <= due):
            return
        self._cancel(key)
        self._later[key] = loop.call_at(due, self.add, key)

    def forget(self, key: Key) -> None:
        """No more delayed returns, no memory of failures or of slow work."""
        self._cancel(key)
        self._slow.discard(key)
        self._failures.pop(key, None)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is worked on. (Delayed returns may be due later.)"""
        return not self._waiting and not self._working

    async def run(self, workers: int) -> None:
        """Until cancelled; then whatever is worked on is cancelled, too. For slow keys there are half as many more."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(self._ready))
            for _ in range(max(1, workers // 2)):
                group.create_task(self._worker(self._ready_slow))

    def _put(self, key: Key) -> None:
        (self._ready_slow if key in self._slow else self._ready).put_nowait(key)

    async def _worker(self, ready: asyncio.Queue[Key]) -> None:
        while True:
            key = await ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            self._on_depth(len(self._waiting))
            began = time.monotonic()
            try:
                again = await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:
                # Whatever it is: one key's trouble must not stop the others.
                again = self._delay(key)
                self._on_failure(key, error, again)
            finally:
                self._working.discard(key)
                slow = time.monotonic() - began > self._slow_seconds
                (self._slow.add if slow else self._slow.discard)(key)
                if key in self._waiting:
                    self._put(key)
            if again is not None:
                self.add_after(key, again)

    def _delay(self, key: Key) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return back_off(failures, first=self._first, longest=self._longest)

    def _cancel(self, key: Key) -> None:
        handle = self._later.pop(key, None)
        if handle is not None:
            handle.cancel()
