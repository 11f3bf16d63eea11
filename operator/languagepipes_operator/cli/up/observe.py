"""What members report: /status on telemetry ports, the store's facts and progress over mTLS.

Asking never raises for a member that is away, late or another than expected: then there is no answer. Decides nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
from languagepipes_api.facts import ModelFacts
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity
from languagepipes_api.store_answers import Problem, StoreProgress
from pydantic import ValidationError

from languagepipes_operator.observe.store_answers import (
    Answer,
    ask,
    client_context,
    facts_in,
    open_session,
    refusal_of,
)

_ANSWER_SECONDS = 2.0
# No member can have this name.
_PROGRESS = "/v1/progress"

Said = TypeVar("Said")


class ObserveError(Exception):
    """Base of what asking the store can end in."""


class SourceFailed(ObserveError):
    """The store gave the source up for good. reason: one word; str(): the sentence with the remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Observation:
    """The latest answers; None for who did not answer in time."""

    members: Mapping[str, MemberStatus | None] = field(default_factory=dict)
    progress: StoreProgress | None = None


class _Asker:
    """A session in an event loop of a thread of its own, so that nobody waits who does not want to."""

    def __init__(self, open_session: Callable[[], aiohttp.ClientSession]) -> None:
        self._open_session = open_session
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, aiohttp.ClientSession]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="observe", daemon=True)
        self._thread.start()

    def submit(self, question: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Said]]) -> Future[Said]:
        """The future is cancelled if this is closed before the answer."""
        loop, _, http = self._running.result()
        return asyncio.run_coroutine_threadsafe(question(http), loop)

    def close(self) -> None:
        loop, stopped, _ = self._running.result()
        if self._thread.is_alive():
            loop.call_soon_threadsafe(stopped.set)
            self._thread.join()

    async def _run(self) -> None:
        stopped = asyncio.Event()
        async with self._open_session() as http:
            self._running.set_result((asyncio.get_running_loop(), stopped, http))
            await stopped.wait()


class StoreObserver:
    """Asks one store, as the operator that `tls_dir` names, and believes nobody but the pipe's store."""

    def __init__(self, address: str, *, tls_dir: Path, store: Identity) -> None:
        context = client_context(
            (tls_dir / TLS_CA_FILE).read_text(),
            certificate=tls_dir / TLS_CERTIFICATE_FILE,
            key=tls_dir / TLS_KEY_FILE,
            store=store,
        )
        self._asker = _Asker(lambda: open_session(f"https://{address}", context, answer_seconds=_ANSWER_SECONDS))

    def facts(self) -> ModelFacts | None:
        """None while there are none yet (`progress` says why) or no answer. Raises SourceFailed."""
        answer: Answer | None = self._asker.submit(partial(ask, path="/v1/facts")).result()
        if answer is None or answer.status == 503:
            return None
        found = facts_in(answer) if answer.status == 200 else refusal_of(answer)
        if isinstance(found, Problem):
            raise SourceFailed(found.reason, found.message)
        return found

    def progress(self) -> StoreProgress | None:
        """None without an answer."""
        return self.ask_progress().result()

    def ask_progress(self) -> Future[StoreProgress | None]:
        """As `progress`, without waiting."""
        return self._asker.submit(_progress)

    def close(self) -> None:
        self._asker.close()


async def _progress(http: aiohttp.ClientSession) -> StoreProgress | None:
    answer = await ask(http, _PROGRESS)
    try:
        return None if answer is None else StoreProgress.model_validate_json(answer.content)
    except ValidationError:
        return None


class Observer:
    """Asks everybody in the background, so that a member that hangs holds up nobody."""

    def __init__(self) -> None:
        self._questions: dict[str, Callable[[], Future[MemberStatus | None]]] = {}
        self._store: StoreObserver | None = None
        self._pending: dict[str, Future[Any]] = {}
        self._latest: dict[str, Any] = {}
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        self._asker = _Asker(lambda: aiohttp.ClientSession(timeout=timeout))

    def watch(self, name: str, telemetry: str) -> None:
        """From now on ask the member `name` at its telemetry address."""
        self._questions[name] = partial(self._asker.submit, partial(_report, telemetry=telemetry))

    def watch_store(self, store: StoreObserver) -> None:
        """From now on ask `store` for its progress; it is closed with this observer."""
        self._store = store

    def forget(self, name: str) -> None:
        """The member `name` died: what it said last is no longer so."""
        self._latest.pop(name, None)
        self._pending.pop(name, None)

    def observe(self) -> Observation:
        """The latest answers; asks anew those who have answered, or not in time. Never blocks."""
        if self._store is not None:
            self._ask(_PROGRESS, self._store.ask_progress)
        for name, question in self._questions.items():
            self._ask(name, question)
        return Observation(
            members={name: self._latest.get(name) for name in self._questions},
            progress=self._latest.get(_PROGRESS),
        )

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asker.close()
        if self._store is not None:
            self._store.close()

    def _ask(self, name: str, question: Callable[[], Future[Any]]) -> None:
        pending = self._pending.get(name)
        if pending is not None:
            if not pending.done():
                return
            self._latest[name] = pending.result()
        self._pending[name] = question()


async def _report(http: aiohttp.ClientSession, telemetry: str) -> MemberStatus | None:
    try:
        async with http.get(f"http://{telemetry}/status", allow_redirects=False) as response:
            return MemberStatus.model_validate_json(await response.read())
    except (aiohttp.ClientError, OSError, ValidationError):
        return None
