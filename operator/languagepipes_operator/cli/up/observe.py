"""What members report: /status on telemetry ports, the store's facts and progress over mTLS.

Asking never raises for a member that is away, late or another than expected: then there is no answer. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from languagepipes_api.facts import ModelFacts
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity
from languagepipes_api.store_answers import Problem, StoreProgress
from pydantic import ValidationError

from languagepipes_operator.observe.store_answers import (
    client_context,
    facts_in,
    is_from,
    refusal_of,
)

_ANSWER_SECONDS = 2.0
# No member can have this name.
_PROGRESS = "/v1/progress"


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


class StoreObserver:
    """Asks one store, as the operator that `tls_dir` names, and believes nobody but the pipe's store."""

    def __init__(self, address: str, *, tls_dir: Path, store: Identity) -> None:
        context = client_context(
            (tls_dir / TLS_CA_FILE).read_text(), certificate=tls_dir / TLS_CERTIFICATE_FILE, key=tls_dir / TLS_KEY_FILE
        )
        self._store = store
        self._client = httpx.Client(
            base_url=f"https://{address}", verify=context, timeout=_ANSWER_SECONDS, trust_env=False
        )

    def facts(self) -> ModelFacts | None:
        """None while there are none yet (`progress` says why) or no answer. Raises SourceFailed."""
        response = self._get("/v1/facts")
        if response is None or response.status_code == 503:
            return None
        found = facts_in(response) if response.status_code == 200 else refusal_of(response)
        if isinstance(found, Problem):
            raise SourceFailed(found.reason, found.message)
        return found

    def progress(self) -> StoreProgress | None:
        """None without an answer."""
        response = self._get("/v1/progress")
        if response is None:
            return None
        try:
            return StoreProgress.model_validate_json(response.content)
        except ValidationError:
            return None

    def close(self) -> None:
        self._client.close()

    def _get(self, path: str) -> httpx.Response | None:
        try:
            # Streamed, since the connection can be asked who it is only while it is open.
            with self._client.stream("GET", path) as response:
                if not is_from(response, self._store):
                    return None
                response.read()
                return response
        except httpx.HTTPError:
            return None


class Observer:
    """Asks everybody in the background, so that a member that hangs holds up nobody."""

    def __init__(self) -> None:
        self._questions: dict[str, Callable[[], MemberStatus | None]] = {}
        self._store: StoreObserver | None = None
        self._pending: dict[str, Future[Any]] = {}
        self._latest: dict[str, Any] = {}
        self._client = httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False)
        self._pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="observe")

    def watch(self, name: str, telemetry: str) -> None:
        """From now on ask the member `name` at its telemetry address."""
        self._questions[name] = partial(self._report, telemetry)

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
            self._ask(_PROGRESS, self._store.progress)
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
        self._pool.shutdown(cancel_futures=True)
        self._client.close()
        if self._store is not None:
            self._store.close()

    def _ask(self, name: str, question: Callable[[], object]) -> None:
        pending = self._pending.get(name)
        if pending is not None:
            if not pending.done():
                return
            self._latest[name] = pending.result()
        self._pending[name] = self._pool.submit(question)

    def _report(self, telemetry: str) -> MemberStatus | None:
        try:
            response = self._client.get(f"http://{telemetry}/status")
            return MemberStatus.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError):
            return None
