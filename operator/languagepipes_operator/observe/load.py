"""How many requests the End Models of autoscaled pipes have: running and waiting, by their own word, every few seconds.

Nothing is written, and no pipe is looked at, before the number of replicas that follows is another one. What was
reported is forgotten when another process leads; the number itself is in the pipe's status.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_ROLE
from languagepipes_api.spec import AutoscalingSpec
from pydantic import ValidationError

from languagepipes_operator.kube.informer import ObjectKey, key_of
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import is_active, is_ready, label
from languagepipes_operator.observe.pipes import Pipes

TICK_SECONDS = 1.0
# Each End Model is asked once in so many ticks; that of an idle pipe at each, since somebody may wait there.
PERIOD_TICKS = 3
# Which pipes are autoscaled is looked up once in so many ticks: hundreds may be there that are not.
_LISTING_TICKS = 5
# A Ready End Model that did not answer so many first questions cannot be asked.
_QUESTIONS_THAT_COUNT = 5


@dataclass(frozen=True)
class Load:
    """highest_requests: of all End Models together, at any time in the last scaleDownDelaySeconds. since: when this
    process began to ask. complete: whether every Ready End Model has answered once; one that is silent now counts as it
    last said.
    """

    highest_requests: int
    since: datetime
    complete: bool = True


class Decide(Protocol):
    """`decide.autoscaling.desired_replicas`."""

    def __call__(
        self, limits: AutoscalingSpec, *, current: int | None, existing: int, load: Load | None, now: datetime
    ) -> int: ...


@dataclass
class _Watched:
    """One pipe. requests, questions: by the End Model's pod's UID. peaks: times and totals, each lower than the one
    before it, so that the first that is young enough is the highest.
    """

    uid: str
    since: datetime
    requests: dict[str, int] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)
    peaks: deque[tuple[datetime, int]] = field(default_factory=deque)
    complete: bool = False
    silent: bool = False

    def note(self, total: int, now: datetime) -> None:
        while self.peaks and self.peaks[-1][1] <= total:
            self.peaks.pop()
        self.peaks.append((now, total))

    def load(self, limits: AutoscalingSpec, now: datetime) -> Load | None:
        oldest = now - timedelta(seconds=limits.scale_down_delay_seconds)
        while len(self.peaks) > 1 and self.peaks[0][0] < oldest:
            self.peaks.popleft()
        return Load(self.peaks[0][1], self.since, self.complete) if self.peaks else None


class LoadProbe:
    """ask: for the /status of the member at that address, None without an answer. pods: of one pipe, as cached.
    on_change: called with a pipe whose number of replicas is another one now, or whose End Models cannot be asked any
    more, or again.
    """

    def __init__(
        self,
        ask: Callable[[str], Awaitable[MemberStatus | None]],
        pipes: Pipes,
        pods: Callable[[ObjectKey], Iterable[Manifest]],
        decide: Decide,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        self._ask = ask
        self._pipes = pipes
        self._pods = pods
        self._decide = decide
        self._on_change = on_change
        self._watched: dict[ObjectKey, _Watched] = {}
        self._asking: set[str] = set()
        self._autoscaled: list[ObjectKey] = []

    def desired(self, raw: Manifest, *, existing: int, now: datetime) -> int | None:
        """The number of replicas now; None for a pipe without autoscaling. While a pipe is paused it stays."""
        limits = autoscaling_of(raw)
        if limits is None:
            return None
        watched = self._watched.get(key_of(raw))
        load = None
        if watched is not None and watched.uid == raw["metadata"]["uid"] and not raw["spec"].get("paused"):
            load = watched.load(limits, now)
        return self._decide(limits, current=desired_in(raw), existing=existing, load=load, now=now)

    def is_silent(self, key: ObjectKey) -> bool:
        """Whether there is a Ready End Model that has never answered."""
        watched = self._watched.get(key)
        return watched is not None and watched.silent

    async def run(self) -> None:
        """Until cancelled; then nothing is known any more."""
        try:
            async with asyncio.TaskGroup() as group:
                for tick in itertools.count():
                    self._look(tick, group)
                    await asyncio.sleep(TICK_SECONDS)
        finally:
            self._watched.clear()
            self._asking.clear()

    def _look(self, tick: int, group: asyncio.TaskGroup) -> None:
        now = datetime.now(UTC)
        if tick % _LISTING_TICKS == 0:
            self._autoscaled = [key_of(raw) for raw in self._pipes.all() if _is_autoscaled(raw)]
        found = ((key, self._pipes.get(key)) for key in self._autoscaled)
        pipes = {key: raw for key, raw in found if raw is not None and _is_autoscaled(raw)}
        for key in self._watched.keys() - pipes.keys():
            del self._watched[key]
        for key, raw in pipes.items():
            uid = raw["metadata"]["uid"]
            watched = self._watched.get(key)
            if watched is None or watched.uid != uid:
                watched = self._watched[key] = _Watched(uid, now)
            pods = {_uid(pod): pod for pod in self._pods(key) if _is_asked(pod)}
            for gone in (watched.requests.keys() | watched.questions.keys()) - pods.keys():
                watched.requests.pop(gone, None)
                watched.questions.pop(gone, None)
            for pod_uid, pod in pods.items():
                due = zlib.crc32(pod_uid.encode()) % PERIOD_TICKS == tick % PERIOD_TICKS or desired_in(raw) == 0
                if due and pod_uid not in self._asking:
                    self._asking.add(pod_uid)
                    group.create_task(self._question(watched, pod))
            self._judge(key, raw, watched, pods.values(), now)

    def _judge(self, key: ObjectKey, raw: Manifest, watched: _Watched, pods: Iterable[Manifest], now: datetime) -> None:
        unknown = [_uid(pod) for pod in pods if is_ready(pod) and _uid(pod) not in watched.requests]
        watched.complete = not unknown
        if watched.requests:
            watched.note(sum(watched.requests.values()), now)
        silent = any(watched.questions.get(uid, 0) >= _QUESTIONS_THAT_COUNT for uid in unknown)
        turned, watched.silent = silent != watched.silent, silent
        current = desired_in(raw)
        if turned or (current is not None and self.desired(raw, existing=current, now=now) != current):
            self._on_change(key)

    async def _question(self, watched: _Watched, pod: Manifest) -> None:
        uid = _uid(pod)
        try:
            report = await self._ask(pod["status"]["podIP"])
        finally:
            self._asking.discard(uid)
        watched.questions[uid] = watched.questions.get(uid, 0) + 1
        if report is not None and report.open_requests is not None:
            watched.requests[uid] = report.open_requests


def autoscaling_of(raw: Manifest) -> AutoscalingSpec | None:
    """As the API server has it; None where there is none, or it cannot be read."""
    value = (raw.get("spec") or {}).get("autoscaling")
    try:
        return None if value is None else AutoscalingSpec.model_validate(value, by_alias=True, by_name=False)
    except ValidationError:
        return None


def desired_in(raw: Manifest) -> int | None:
    """What was decided last, by the status."""
    found = (raw.get("status") or {}).get("desiredReplicas")
    return None if found is None else int(found)


def is_idle(raw: Manifest) -> bool:
    """Whether its stages are stopped because no request needs them, or are about to be."""
    return _is_autoscaled(raw) and desired_in(raw) == 0


def _is_autoscaled(raw: Manifest) -> bool:
    return bool((raw.get("spec") or {}).get("autoscaling"))


def _is_asked(pod: Manifest) -> bool:
    return label(pod, LABEL_ROLE) == "end-model" and is_active(pod) and bool(pod.get("status", {}).get("podIP"))


def _uid(pod: Manifest) -> str:
    return str(pod["metadata"].get("uid", ""))
