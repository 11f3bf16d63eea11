"""In front of the engine: who asks, and whose work is done next beside the event loop. It knows neither text nor JSON.

Rendering and tokenising a prompt takes up to seconds. Seats (`EngineBridge.reserve`) are taken before that, so that it
is done only for requests that are admitted; then clients take turns, so that one client's many long prompts hold up no
other's. A client is an API key, or where none is asked for, an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive, Scope

from languagepipes_node.end_model.openai.bridge import ClientGone, EngineBridge, Reservation

T = TypeVar("T")
_SALT = secrets.token_bytes(16)


@dataclass(frozen=True)
class Asker:
    """Whose request it is, and what must be given back once it is over. The guard puts one into each scope.

    client: equal for requests of one client. It says nothing else, changes with each process, and is never logged.
    keyed: whether the client is known by an API key.
    """

    client: str
    seats: contextlib.ExitStack
    keyed: bool = False

    @property
    def owner(self) -> str:
        """Whose is what the request leaves behind: its key's, or everybody's where no keys are asked for."""
        return self.client if self.keyed else ""

    def cache_domain(self, salt: str | None) -> str:
        """Within which KV may be shared: the owner's, and of requests with the same `cache_salt`."""
        return self.owner if salt is None else f"{self.owner} {salt}"

    @staticmethod
    def of(scope: Scope) -> Asker:
        asker: Asker = scope["languagepipes.asker"]
        return asker

    def reserve(self, bridge: EngineBridge, sequences: int) -> Reservation:
        """Seats for so many sequences, given back when the request is over, however it ends.

        Raises TooManySequences, Draining and EngineGone.
        """
        return self.seats.enter_context(bridge.reserve(sequences))


def client_id(scope: Scope, key: bytes | None) -> str:
    """key: the API key, if one was asked for and right. Without keys a client is known by its address alone: its port
    would make a client of each connection."""
    host = (scope.get("client") or ("", 0))[0]
    who = b"key " + key if key is not None else b"address " + host.encode()
    return hashlib.blake2b(who, key=_SALT, digest_size=16).hexdigest()


class _Job:
    """What is to be done for somebody who waits for `result`."""

    __slots__ = ("result", "work")

    def __init__(self, work: Callable[[], Any], result: asyncio.Future[Any]) -> None:
        self.work, self.result = work, result


class FairWorkers:
    """A few threads in which clients have work done, in turns, whatever the number and length of their jobs.

    All threads but one are the most that work for one client at a time: so another's job waits at most for jobs of
    third clients, one of each. Belongs to one event loop.
    """

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="tokenise")
        self._free = threads
        self._most_each = max(1, threads - 1)
        self._waiting: dict[str, deque[_Job]] = {}  # clients in the order of their turns
        self._running: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Jobs that were not begun yet."""
        return sum(map(len, self._waiting.values()))

    async def run(self, client: str, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Work that nobody waits for any more is not begun."""
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(client, deque()).append(job)
        self._begin()
        try:
            result: T = await job.result
            return result
        finally:
            self._forget(client, job)

    async def run_for(self, request: Request, work: Callable[[], T]) -> T:
        """`run` for the request's client. Raises ClientGone if that leaves before."""
        job = asyncio.ensure_future(self.run(Asker.of(request.scope).client, work))
        gone = asyncio.ensure_future(disconnected(request.receive))
        try:
            await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise ClientGone
            return job.result()
        finally:
            gone.cancel()
            job.cancel()

    def _begin(self) -> None:
        """Give every free thread to whoever's turn it is."""
        while self._free:
            client = next((name for name in self._waiting if self._running[name] < self._most_each), None)
            if client is None:
                return
            jobs = self._waiting.pop(client)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # its next turn is after everybody else's
            self._free -= 1
            self._running[client] += 1
            running = asyncio.get_running_loop().run_in_executor(self._pool, job.work)
            running.add_done_callback(partial(self._ended, client, job))

    def _ended(self, client: str, job: _Job, done: asyncio.Future[Any]) -> None:
        self._free += 1
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        if (error := done.exception()) is not None:
            if not job.result.done():
                job.result.set_exception(error)
        elif not job.result.done():
            job.result.set_result(done.result())
        self._begin()

    def _forget(self, client: str, job: _Job) -> None:
        """Take a job out that was not begun: nothing of a request stays behind it."""
        jobs = self._waiting.get(client)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[client]


async def disconnected(receive: Receive) -> None:
    """Returns once the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
