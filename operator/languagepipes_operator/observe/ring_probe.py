"""Which rings are down that were up, also where all their pods are Ready, as after a network was cut between two nodes.

An End Model turns unready with its ring, but Kubernetes knows that only after the kubelet's next probe. So each Ready
End Model is asked for its /status every few seconds; one whose ring is down every second, until it is up again.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_ROLE

from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.caches import pipes_of
from languagepipes_operator.observe.ownership import is_active, is_ready, label

TICK_SECONDS = 1.0
# Each ring is asked about once in so many ticks; which of them follows from the pod's UID, so that questions spread.
PERIOD_TICKS = 5
_AT_ONCE = 64


class RingProbe:
    """ask: for the /status of the member at that address, None without an answer. pods: those of all members, as
    cached. on_change: called with the pipe whose ring went down, or is up again. expects_ring: whether that End Model's
    ring is to be up; it is not while its pipe is idle.

    A ring counts as down when two answers in a row say so: one that was joined again at once is no news. An End Model
    that does not answer changes nothing: a NetworkPolicy may keep this operator from asking, and then only Kubernetes'
    view of the pods counts.
    """

    def __init__(
        self,
        metrics: Metrics,
        ask: Callable[[str], Awaitable[MemberStatus | None]],
        pods: Callable[[], Iterable[Manifest]],
        on_change: Callable[[ObjectKey], None],
        expects_ring: Callable[[Manifest], bool] = lambda _: True,
    ) -> None:
        self._metrics = metrics
        self._ask = ask
        self._pods = pods
        self._on_change = on_change
        self._expects_ring = expects_ring
        self._slots = asyncio.Semaphore(_AT_ONCE)
        # By the End Model's pod's UID: what it answered last. Suspected: its last answer was the first of that kind.
        self._down: dict[str, MemberStatus] = {}
        self._suspected: set[str] = set()

    @property
    def down(self) -> Mapping[str, MemberStatus]:
        """By the UID of the End Model's pod, what it answered last."""
        return self._down

    async def run(self) -> None:
        """Until cancelled; then nothing is known any more."""
        try:
            for tick in itertools.count():
                await self._look(tick)
                await asyncio.sleep(TICK_SECONDS)
        finally:
            self._down.clear()
            self._suspected.clear()
            self._metrics.rings_down.set(0)

    def note(self, pod: Manifest, report: MemberStatus | None) -> None:
        """What the End Model of that pod answered to a question of another part of the operator."""
        if report is None:
            return
        if ring_is_down(report) and (is_ready(pod) or report.recovering) and self._expects_ring(pod):
            self._down[_uid(pod)] = report
        else:
            self._down.pop(_uid(pod), None)
        self._suspected.discard(_uid(pod))
        self._metrics.rings_down.set(len(self._down))

    async def _look(self, tick: int) -> None:
        pods = {_uid(pod): pod for pod in self._pods() if self._is_asked(pod)}
        for uid in self._down.keys() - pods.keys():
            del self._down[uid]
        self._suspected &= pods.keys()
        due = (
            pod
            for uid, pod in pods.items()
            if uid in self._down
            or uid in self._suspected
            or zlib.crc32(uid.encode()) % PERIOD_TICKS == tick % PERIOD_TICKS
        )
        await asyncio.gather(*map(self._question, due))
        self._metrics.rings_down.set(len(self._down))

    def _is_asked(self, pod: Manifest) -> bool:
        """Of one that is not Ready its pod says enough, but for when its ring is up again."""
        address = pod.get("status", {}).get("podIP")
        serves = label(pod, LABEL_ROLE) == "end-model" and bool(address) and is_active(pod)
        serves = serves and self._expects_ring(pod)
        return serves and (is_ready(pod) or _uid(pod) in self._down)

    async def _question(self, pod: Manifest) -> None:
        async with self._slots:
            report = await self._ask(pod["status"]["podIP"])
        self._metrics.ring_questions.labels("silent" if report is None else "answered").inc()
        uid = _uid(pod)
        if report is not None and ring_is_down(report) and uid not in self._down and uid not in self._suspected:
            self._suspected.add(uid)
            return
        before = uid in self._down
        self.note(pod, report)
        if (uid in self._down) != before:
            for pipe in pipes_of(pod):
                self._on_change(pipe)


def ring_is_down(report: MemberStatus) -> bool:
    """Of an End Model: it has loaded its own weights, and its ring health check does not pass."""
    return report.state == "ready" and not report.ring_ready


def _uid(pod: Manifest) -> str:
    return str(pod["metadata"].get("uid", ""))
