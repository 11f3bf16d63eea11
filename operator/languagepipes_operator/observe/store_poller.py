"""Asks weights stores in the background, every few seconds for as long as their pipes are not Ready.

Stores are asked at their pods' addresses, over mTLS; an answer counts only if the certificate names the pipe's store.
Asking never raises and never blocks a reconcile, which reads the latest answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from languagepipes_api.names import STORE_PORT, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity
from languagepipes_api.store_answers import Problem, StoreProgress
from pydantic import ValidationError

from languagepipes_operator.certificates.authority import Credentials
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.snapshot import StoreReport
from languagepipes_operator.observe.store_answers import (
    ask,
    client_context,
    facts_in,
    open_session,
    refusal_of,
)

ASK_SECONDS = 5.0
# A change of the byte count alone is reported at most this often, since each report may write a status.
_PROGRESS_SECONDS = 10.0
_ANSWER_SECONDS = 3.0
_AT_ONCE = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """A store's pod. pod_uid: so that no answer of an earlier pod is taken for this one's."""

    host: str
    pod_uid: str

    @property
    def url(self) -> str:
        return f"https://[{self.host}]:{STORE_PORT}" if ":" in self.host else f"https://{self.host}:{STORE_PORT}"


@dataclass
class _Watched:
    store: Identity
    address: Address
    client: Credentials
    task: asyncio.Task[None] | None = None
    report: StoreReport | None = None
    reported_at: float = 0.0


class Stores:
    """on_change: called with the pipe whose store answers something new."""

    def __init__(self, metrics: Metrics, on_change: Callable[[ObjectKey], None]) -> None:
        self._metrics = metrics
        self._on_change = on_change
        self._watched: dict[ObjectKey, _Watched] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def watch(self, pipe: ObjectKey, store: Identity, address: Address, client: Credentials) -> None:
        """Ask that store from now on; no change if it is asked already and the credentials are not due for renewal."""
        known = self._watched.get(pipe)
        same = known is not None and known.address == address
        if known is not None and same and known.client.bundle == client.bundle and not _is_old(known.client):
            return
        self.leave(pipe)
        # The last answer of the same store stays valid under another certificate of ours.
        watched = _Watched(store, address, client, report=known.report if known is not None and same else None)
        watched.task = asyncio.create_task(self._ask_on(pipe, watched), name=f"store of {pipe}")
        self._watched[pipe] = watched

    def leave(self, pipe: ObjectKey) -> None:
        """Stop asking, and forget the last answer."""
        known = self._watched.pop(pipe, None)
        if known is not None and known.task is not None:
            known.task.cancel()

    def latest(self, pipe: ObjectKey, address: Address | None) -> StoreReport | None:
        """Its last answer; None while it was not asked yet, or if another pod gave it."""
        known = self._watched.get(pipe)
        return None if known is None or known.address != address else known.report

    def credentials(self, pipe: ObjectKey) -> Credentials | None:
        """The credentials with which that pipe's store is asked; None if it is not asked."""
        known = self._watched.get(pipe)
        return None if known is None else known.client

    def close(self) -> None:
        for pipe in list(self._watched):
            self.leave(pipe)

    async def _ask_on(self, pipe: ObjectKey, watched: _Watched) -> None:
        """Until cancelled, whatever happens: nothing else would start it again."""
        while True:
            try:
                await self._ask_repeatedly(pipe, watched)
            except Exception:
                log.exception("asking the store of %s/%s fails; tried again in %.0f s", *pipe, ASK_SECONDS)
            await asyncio.sleep(ASK_SECONDS)

    async def _ask_repeatedly(self, pipe: ObjectKey, watched: _Watched) -> None:
        context = await asyncio.to_thread(_context, watched.client, watched.store)
        async with open_session(watched.address.url, context, answer_seconds=_ANSWER_SECONDS) as http:
            while True:
                async with self._slots:
                    report = await _ask(http, watched.report)
                self._metrics.store_questions.labels("answered" if report.answered else "silent").inc()
                before, now = watched.report, time.monotonic()
                watched.report = report
                if _is_change(before, report) or (before != report and now - watched.reported_at >= _PROGRESS_SECONDS):
                    watched.reported_at = now
                    self._on_change(pipe)
                await asyncio.sleep(ASK_SECONDS)


def _is_old(client: Credentials) -> bool:
    return client.leaf.renew_at() <= datetime.now(UTC)


def _is_change(before: StoreReport | None, now: StoreReport) -> bool:
    """Whether more changed than the count of bytes."""
    if before is None:
        return True
    return (before.answered, before.phase, before.reason, before.failed, before.facts) != (
        now.answered,
        now.phase,
        now.reason,
        now.failed,
        now.facts,
    )


async def _ask(http: aiohttp.ClientSession, before: StoreReport | None) -> StoreReport:
    progress = None
    answer = await ask(http, "/v1/progress")
    if answer is not None:
        with contextlib.suppress(ValidationError):
            progress = StoreProgress.model_validate_json(answer.content)
    if progress is None:
        # The facts of its last answer stay valid.
        return StoreReport(
            answered=False, facts=before.facts if before else None, misses=before.misses + 1 if before else 1
        )
    facts = before.facts if before else None
    problem, failed = progress.error, progress.phase == "Failed"
    if facts is None:
        answer = await ask(http, "/v1/facts")
        if answer is not None and answer.status == 200:
            found = facts_in(answer)
            if isinstance(found, Problem):
                problem, failed = found, True
            else:
                facts = found
        elif answer is not None and answer.status != 503:
            problem, failed = refusal_of(answer), True
    return StoreReport(
        answered=True,
        facts=facts,
        phase=progress.phase,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        reason=problem.reason if problem else "",
        message=problem.message if problem else "",
        failed=failed,
    )


def _context(client: Credentials, store: Identity) -> ssl.SSLContext:
    # The ssl module reads a chain and its key from files alone.
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, TLS_CERTIFICATE_FILE), Path(folder, TLS_KEY_FILE)
        certificate.write_bytes(client.leaf.certificate)
        key.touch(mode=0o600)
        key.write_bytes(client.leaf.key)
        return client_context(client.bundle.decode(), certificate=certificate, key=key, store=store)
