"""Which nodes have stopped answering, seconds after they did: Kubernetes marks a node as lost after 40 s or more.

Until then the pods of such a node keep their last status, so that a pipe would be Ready whose End Model cannot be
reached. One connection to each node every few seconds finds out, however many pods are on it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from languagepipes_api.names import TELEMETRY_PORT

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.ownership import container_state, container_statuses, is_active

PERIOD_SECONDS = 3.0
_ANSWER_SECONDS = 1.5
# By then Kubernetes has marked a lost node itself: one that it has not marked is cut off from this operator alone.
SILENCE_TIMEOUT_SECONDS = 180.0
# Tries in a row without an answer, to different pods where a node has several.
_TRIES = 2
_AT_ONCE = 64


class Reachability:
    """pods: those of all members, as cached. on_change: called with a node that was lost, or is back.

    A node counts as lost only if it answered before: one that never answers may be behind a NetworkPolicy, or this
    operator may run outside the cluster. If several nodes fall silent and none answers, it is this operator that is cut
    off. After `silence_timeout_seconds` of silence a node counts as one that never answered.
    """

    def __init__(
        self,
        metrics: Metrics,
        pods: Callable[[], Iterable[Manifest]],
        on_change: Callable[[str], None],
        *,
        port: int = TELEMETRY_PORT,
        silence_timeout_seconds: float = SILENCE_TIMEOUT_SECONDS,
    ) -> None:
        self._metrics = metrics
        self._pods = pods
        self._on_change = on_change
        self._port = port
        self._silence_timeout = silence_timeout_seconds
        # When each node answered last, by our clock.
        self._answered: dict[str, float] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.lost: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until cancelled; then nothing is known any more."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(PERIOD_SECONDS)
        finally:
            self._answered.clear()
            self._publish(frozenset())

    async def _look(self) -> None:
        hosts = _hosts_by_node(self._pods())
        answers = await asyncio.gather(*(self._answers(addresses) for addresses in hosts.values()))
        now = time.monotonic()
        answering = {node: now for node, answered in zip(hosts, answers, strict=True) if answered}
        known = {node: at for node, at in self._answered.items() if node in hosts and now - at < self._silence_timeout}
        self._answered = known | answering
        silent = known.keys() - answering.keys()
        isolated = not answering and len(silent) > 1
        self._publish(self.lost & hosts.keys() if isolated else frozenset(silent))

    def _publish(self, lost: frozenset[str]) -> None:
        changed, self.lost = self.lost ^ lost, lost
        self._metrics.lost_nodes.set(len(lost))
        for node in changed:
            self._on_change(node)

    async def _answers(self, addresses: list[str]) -> bool:
        async with self._slots:
            for attempt in range(_TRIES):
                if await self._connects(addresses[attempt % len(addresses)]):
                    return True
        return False

    async def _connects(self, host: str) -> bool:
        """Whether something there answers, also with a refusal: only whether the node answers matters."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                _, writer = await asyncio.open_connection(host, self._port)
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True


def _hosts_by_node(pods: Iterable[Manifest]) -> dict[str, list[str]]:
    """Addresses of pods that run, oldest first."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pod in pods:
        node, status = pod.get("spec", {}).get("nodeName"), pod.get("status", {})
        runs = any(container_state(each, "running") for each in container_statuses(pod))
        if node and runs and status.get("podIP") and is_active(pod):
            found[node].append((pod["metadata"].get("creationTimestamp", ""), status["podIP"]))
    return {node: [host for _, host in sorted(hosts)] for node, hosts in found.items()}
