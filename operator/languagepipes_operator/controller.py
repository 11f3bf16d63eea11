"""One operator process: what runs beside what, from the first look at the API server to a clean stop.

Caches and kopf run in a standby too, so that it takes over at once; only the holder of the Lease works the queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import httpx

from languagepipes_operator import handlers, health
from languagepipes_operator.apply.applier import Applier, ConflictError
from languagepipes_operator.kube.client import Expired, Forbidden, Kube, KubeError, NotLeading
from languagepipes_operator.kube.crd_check import problem_with_schema
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import PIPE
from languagepipes_operator.kube.leader_election import Leadership, Timing
from languagepipes_operator.kube.workqueue import WorkQueue
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.caches import Caches, pipes_of
from languagepipes_operator.observe.node_probe import Reachability
from languagepipes_operator.observe.observer import Observer
from languagepipes_operator.observe.pipes import Pipes
from languagepipes_operator.observe.store_poller import Stores
from languagepipes_operator.reconcile import Reconciler
from languagepipes_operator.settings import OperatorSettings

_WORKERS = 8
_CHECK_SECONDS = 5.0
_RECHECK_SECONDS = 60.0
_TOGETHER_SECONDS = 1.0

log = logging.getLogger(__name__)


class Operator:
    """Serves pipes until it is cancelled."""

    def __init__(
        self,
        kube: Kube,
        settings: OperatorSettings,
        metrics: Metrics,
        *,
        timing: Timing | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._reading = kube
        self.leadership = Leadership(
            kube,
            namespace=settings.pod_namespace,
            name=settings.lease_name,
            identity=settings.identity,
            timing=timing,
        )
        writing = kube.guarded(lambda: self.leadership.leads and self._trouble is None)
        self.queue: WorkQueue[ObjectKey] = WorkQueue(
            self._reconcile, on_failure=_log_failure, on_depth=metrics.queue_depth.set
        )
        self.caches = Caches(kube, metrics, settings.namespaces, self._changed, self._nodes_changed)
        self.pipes = Pipes(self.queue.add)
        self.stores = Stores(metrics, self.queue.add)
        self._http = httpx.AsyncClient(trust_env=False)
        self._reachability = Reachability(metrics, self.caches.pods, self._node_changed)
        observer = Observer(kube, self.caches, self.stores, self._reachability, self._http)
        applier = Applier(writing, self.caches)
        self._reconciler = Reconciler(writing, self.pipes, observer, applier, self.stores, settings, metrics)
        self._trouble: str | None = "nothing was checked yet"

    def why_not_ready(self) -> str | None:
        """None for a leader and a standby alike, once all that they watch is known."""
        if self._trouble is not None:
            return self._trouble
        late = [str(informer.kind) for informer in self.caches.all if not informer.synced]
        return f"waiting for the first list of {', '.join(sorted(set(late)))}" if late else None

    def before_metrics(self) -> None:
        """Bring up to date what is counted when asked."""
        self._metrics.show_phases(self.pipes.phases())
        self._metrics.leader.set(1 if self.leadership.leads else 0)

    async def run(self) -> None:
        """Until cancelled, or until a part fails that must not, and the process is started again."""
        try:
            await self._wait_for_schema()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.caches.run(), name="caches")
                group.create_task(self._feed(), name="kopf")
                group.create_task(self._recheck_schema(), name="schema")
                await self._wait_for_caches()
                log.info("caches are filled: %d pipes", len(self.pipes.known()))
                group.create_task(self.leadership.run(self._lead), name="lease")
        finally:
            self.stores.close()
            await self._http.aclose()

    async def _lead(self) -> None:
        """What only the holder of the Lease does. Whatever happened meanwhile, each pipe is looked at once."""
        for key in self.pipes.known():
            self.queue.add(key)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reachability.run(), name="reachability")
                group.create_task(self.queue.run(_WORKERS), name="queue")
        finally:
            self._reconciler.rest()
            self.stores.close()

    async def _reconcile(self, key: ObjectKey) -> float | None:
        return await self._reconciler(key)

    def _changed(self, key: ObjectKey) -> None:
        # Labels may name pipes that do not exist; those are nobody's business.
        if self.pipes.get(key) is not None:
            self.queue.add(key)

    def _nodes_changed(self) -> None:
        # Several at a time come together.
        for key in self._reconciler.refused:
            self.queue.add_after(key, _TOGETHER_SECONDS)

    def _node_changed(self, node: str) -> None:
        """It fell silent, or answers again: whoever has members there looks at them."""
        for pod in self.caches.pods():
            if pod.get("spec", {}).get("nodeName") == node:
                for pipe in pipes_of(pod):
                    self._changed(pipe)

    async def _feed(self) -> None:
        """Until cancelled. Raises where kopf fails for good, or ends."""
        await handlers.feed(self._reading, self._settings.namespaces, on_seen=self.pipes.seen, on_gone=self.pipes.gone)
        raise RuntimeError("the watch of LanguagePipes ended; see kopf's messages above")

    async def _wait_for_schema(self) -> None:
        last = None
        while True:
            self._trouble = await self._check()
            if self._trouble is None:
                return
            if self._trouble != last:
                log.error("%s", self._trouble)
                last = self._trouble
            await asyncio.sleep(_CHECK_SECONDS)

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
                        self.queue.add(key)
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
        """All kinds, and then the pipes: nothing is decided upon half of what there is."""
        said = 0.0
        waiting = asyncio.ensure_future(self.caches.wait_synced())
        while not waiting.done():
            await asyncio.wait([waiting], timeout=_CHECK_SECONDS)
            if not waiting.done() and time.monotonic() - said > 30:
                said = time.monotonic()
                for trouble in self.caches.trouble:
                    log.error("%s", trouble)
        listed = [
            item
            for namespace in self._settings.namespaces or (None,)
            for item in await _list_pipes(self._reading, namespace)
        ]
        for item in listed:
            self.pipes.seen(item)


async def _list_pipes(kube: Kube, namespace: str | None) -> tuple[dict[str, object], ...]:
    while True:
        try:
            return (await kube.list(PIPE, namespace=namespace)).items
        except Expired:
            continue
        except KubeError as error:
            log.warning("listing pipes fails, tried again: %s", error)
            await asyncio.sleep(_CHECK_SECONDS)


def _log_failure(key: ObjectKey, error: Exception, seconds: float) -> None:
    where = f"{key.namespace}/{key.name}"
    if isinstance(error, ConflictError):
        log.debug("%s: looked at again in %.1f s: %s", where, seconds, error)
    elif isinstance(error, KubeError | NotLeading):
        log.warning("%s: tried again in %.1f s: %s", where, seconds, error)
    else:
        # A bug: it must not stop other pipes, and must be seen.
        log.error("%s: an error that nothing expected; tried again in %.1f s", where, seconds, exc_info=error)


async def serve(
    settings: OperatorSettings,
    kube: Kube,
    metrics: Metrics,
    *,
    on_listen: Callable[[str], None],
) -> None:
    """An operator and its telemetry, until it is cancelled. Raises OSError where the telemetry port is taken."""
    operator = Operator(kube, settings, metrics)
    async with health.serve(
        settings.listen, metrics, why_not_ready=operator.why_not_ready, before_metrics=operator.before_metrics
    ) as address:
        on_listen(address)
        await operator.run()
