"""The parts of one operator: what runs beside what, from the first look at the API server to a clean stop.

kopf starts and stops them (see `handlers`) and watches the pipes. A standby keeps its caches filled too, so that it
takes over at once; only the holder of the Lease works the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import aiohttp

from languagepipes_operator import health
from languagepipes_operator.apply.applier import Applier, ConflictError
from languagepipes_operator.decide.autoscaling import desired_replicas
from languagepipes_operator.kube.client import Kube, connect
from languagepipes_operator.kube.configuration import open_session
from languagepipes_operator.kube.crd_check import problem_with_schema
from languagepipes_operator.kube.errors import Forbidden, KubeError, NotLeading, RevisionWentBack
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import PIPE, POD, Manifest
from languagepipes_operator.kube.leader_election import Leadership
from languagepipes_operator.kube.workqueue import WorkQueue
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.caches import Caches, pipes_of
from languagepipes_operator.observe.load import LoadProbe, is_idle
from languagepipes_operator.observe.member_status import ask_member
from languagepipes_operator.observe.node_probe import Reachability
from languagepipes_operator.observe.observer import Observer
from languagepipes_operator.observe.pipes import Index, Pipes
from languagepipes_operator.observe.ring_probe import RingProbe
from languagepipes_operator.observe.store_poller import Stores
from languagepipes_operator.reconcile import Reconciler
from languagepipes_operator.settings import OperatorSettings

_WORKERS = 8
_CHECK_SECONDS = 5.0
_REPORT_SECONDS = 30.0
_RECHECK_SECONDS = 60.0
_TOGETHER_SECONDS = 1.0
_LOGIN_SECONDS = 5.0

log = logging.getLogger(__name__)


class Operator:
    """Serves pipes. index: kopf's, of all pipes that its watch has shown."""

    def __init__(
        self, kube: Kube, http: aiohttp.ClientSession, settings: OperatorSettings, metrics: Metrics, index: Index
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._reading = kube
        self._logged_in_at = -_LOGIN_SECONDS
        self._leadership = Leadership(
            kube, namespace=settings.pod_namespace, name=settings.lease_name, identity=settings.identity
        )
        writing = kube.guarded(lambda: self._leadership.leads and self._trouble is None)
        self._queue: WorkQueue[ObjectKey] = WorkQueue(
            self._reconcile, on_failure=_log_failure, on_depth=metrics.queue_depth.set
        )
        self._caches = Caches(
            kube, metrics, settings.namespaces, self._changed, self._nodes_changed, self._node_changed
        )
        self.pipes = Pipes(index, self._queue.add)
        self._stores = Stores(metrics, self._queue.add)
        self._reachability = Reachability(metrics, self._caches.pods, self._node_changed)
        ask = partial(ask_member, http)
        self._rings = RingProbe(metrics, ask, self._caches.pods, self._changed, self._expects_ring)
        self._loads = LoadProbe(ask, self.pipes, partial(self._caches.children, POD), desired_replicas, self._changed)
        observer = Observer(kube, self._caches, self._stores, self._reachability, self._rings, self._loads, http)
        applier = Applier(writing, self._caches)
        self._reconciler = Reconciler(
            writing, self.pipes, observer, applier, self._stores, settings, metrics, self._caches.reservations
        )
        self._trouble: str | None = "nothing was checked yet"

    @property
    def host(self) -> str:
        return self._reading.host

    async def log_in(self) -> aiohttp.ClientSession:
        """A new session for kopf, which closes it. Not more often than every few seconds, whatever is refused."""
        await asyncio.sleep(max(0.0, self._logged_in_at + _LOGIN_SECONDS - time.monotonic()))
        self._logged_in_at = time.monotonic()
        return open_session(self._reading.configuration)

    def why_not_ready(self) -> str | None:
        """None for a leader and a standby alike, once all that they watch is known."""
        if self._trouble is not None:
            return self._trouble
        late = [str(informer.kind) for informer in self._caches.all if not informer.synced]
        return f"waiting for the first list of {', '.join(sorted(set(late)))}" if late else None

    def before_metrics(self) -> None:
        """Bring up to date what is counted when asked."""
        self._metrics.show_phases(self.pipes.phases())
        leads = self._leadership.leads
        self._metrics.leader.set(1 if leads else 0)
        # A standby's watch may be behind, and two pods would speak of one pipe.
        self._metrics.show_conditions(self.pipes.conditions() if leads else ())

    async def wait_for_schema(self) -> None:
        """Until the API server serves LanguagePipes as this operator knows them, and they may be listed."""
        last = None
        while True:
            self._trouble = await self._check()
            if self._trouble is None:
                return
            if self._trouble != last:
                log.error("%s", self._trouble)
                last = self._trouble
            await asyncio.sleep(_CHECK_SECONDS)

    async def run(self) -> None:
        """Until cancelled. Raises where a part fails that must not: then the process ends, and is started again."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._caches.run(), name="caches")
                group.create_task(self._recheck_schema(), name="schema")
                await self._wait_for_caches()
                log.info("caches are filled: %d pipes", len(self.pipes.known()))
                group.create_task(self._leadership.run(self._lead), name="lease")
        finally:
            self._stores.close()

    async def _lead(self) -> None:
        """What only the holder of the Lease does. Whatever happened meanwhile, each pipe is looked at once."""
        for key in self.pipes.known():
            self._queue.add(key)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reachability.run(), name="reachability")
                group.create_task(self._rings.run(), name="rings")
                group.create_task(self._loads.run(), name="loads")
                group.create_task(self._queue.run(_WORKERS), name="queue")
        finally:
            self._reconciler.rest()
            self._stores.close()

    async def _reconcile(self, key: ObjectKey) -> float | None:
        return await self._reconciler(key)

    def _changed(self, key: ObjectKey) -> None:
        # Labels may name pipes that do not exist; those are nobody's business.
        if self.pipes.get(key) is not None:
            self._queue.add(key)

    def _expects_ring(self, pod: Manifest) -> bool:
        return not any(is_idle(self.pipes.get(key) or {}) for key in pipes_of(pod))

    def _nodes_changed(self) -> None:
        # Several at a time come together.
        for key in self._reconciler.refused:
            self._queue.add_after(key, _TOGETHER_SECONDS)

    def _node_changed(self, node: str) -> None:
        """It fell silent, or answers again, or is being emptied: whoever has members there looks at them."""
        for pod in self._caches.pods_on(node):
            for pipe in pipes_of(pod):
                self._changed(pipe)

    async def _recheck_schema(self) -> None:
        """A CRD can be put back to an older one under a running operator."""
        while True:
            await asyncio.sleep(_RECHECK_SECONDS)
            try:
                found = await problem_with_schema(self._reading)
            except KubeError:
                continue
            if found != self._trouble:
                if found is not None:
                    log.error("%s", found)
                else:
                    log.info("the CRD is as new as this operator again")
                    for key in self.pipes.known():
                        self._queue.add(key)
                self._trouble = found

    async def _check(self) -> str | None:
        """Why nothing can begin yet: no API server, no permission to look, no CRD or an older one."""
        try:
            found = await problem_with_schema(self._reading)
            if found is not None:
                return found
            for namespace in self._settings.namespaces or (None,):
                await self._reading.list(PIPE, namespace=namespace, fields="metadata.name=none")
        except Forbidden as error:
            return f"RBAC: {error}: give the operator's service account the role of the chart"
        except KubeError as error:
            return str(error)
        return None

    async def _wait_for_caches(self) -> None:
        """All kinds: nothing is decided upon half of what there is."""
        reported_at = float("-inf")
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._caches.wait_synced(), _CHECK_SECONDS)
            if time.monotonic() - reported_at > _REPORT_SECONDS:
                reported_at = time.monotonic()
                for trouble in self._caches.trouble:
                    log.error("%s", trouble)


def _log_failure(key: ObjectKey, error: Exception, seconds: float) -> None:
    where = f"{key.namespace}/{key.name}"
    if isinstance(error, ConflictError):
        log.debug("%s: looked at again in %.1f s: %s", where, seconds, error)
    elif isinstance(error, KubeError | NotLeading):
        log.warning("%s: tried again in %.1f s: %s", where, seconds, error)
    else:
        # A bug: it must not stop other pipes, and must be seen.
        log.error("%s: an error that nothing expected; tried again in %.1f s", where, seconds, exc_info=error)


@asynccontextmanager
async def started(settings: OperatorSettings, index: Index, ended: asyncio.Future[None]) -> AsyncIterator[Operator]:
    """An operator at work, and its telemetry; given back once the CRD is there. `ended` gets the error that ends it.

    Raises ConfigurationError, CannotListen.
    """
    metrics = Metrics()
    try:
        async with connect(metrics) as kube, aiohttp.ClientSession() as http:
            operator = Operator(kube, http, settings, metrics, index)
            where = ", ".join(settings.namespaces) or "all namespaces"
            log.info("serving %s of %s as %s", where, kube.host, settings.identity)
            async with health.serve(
                settings.listen, metrics, why_not_ready=operator.why_not_ready, before_metrics=operator.before_metrics
            ) as address:
                log.info("telemetry on %s", address)
                await operator.wait_for_schema()
                running = asyncio.create_task(operator.run(), name="operator")
                running.add_done_callback(lambda task: _report_end(task, ended))
                try:
                    yield operator
                finally:
                    running.cancel()
                    await asyncio.wait([running])
    except Exception as error:
        if not ended.done():
            ended.set_exception(error)
        raise
    finally:
        # kopf waits for whoever waits for its stop flag.
        if not ended.done():
            ended.set_result(None)


def _report_end(task: asyncio.Task[None], ended: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None and not ended.done():
        ended.set_exception(_foreseen_in(error) or error)


def _foreseen_in(error: BaseException) -> RevisionWentBack | None:
    """The one end of a part that is foreseen, out of the groups of errors that parts end in."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_foreseen_in, error.exceptions)), None)
    return error if isinstance(error, RevisionWentBack) else None
