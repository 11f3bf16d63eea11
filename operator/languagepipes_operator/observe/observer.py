"""Takes snapshots of pipes from the caches. In the steady state this sends no request.

Only where something is not well it reads Events from the API server, or members' own /status.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import aiohttp
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE
from languagepipes_api.spec import parse_pipe

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import KubeError
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import (
    BUDGET,
    CHILDREN,
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    POD,
    POLICY,
    SECRET,
    SERVICE,
    Kind,
    Manifest,
)
from languagepipes_operator.names import ANNOTATION_DRAINING, ANNOTATION_GAVE_WAY
from languagepipes_operator.observe.ca_rotation import ca_is_rotated
from languagepipes_operator.observe.caches import Caches
from languagepipes_operator.observe.cluster_nodes import Look
from languagepipes_operator.observe.load import LoadProbe
from languagepipes_operator.observe.member_status import ask_member
from languagepipes_operator.observe.node_probe import Reachability
from languagepipes_operator.observe.ownership import (
    annotations_of,
    container_state,
    container_statuses,
    is_active,
    is_ready,
    label,
    owned_by,
    pod_condition,
    store_keys,
    store_of,
    title,
)
from languagepipes_operator.observe.ring_probe import RingProbe
from languagepipes_operator.observe.snapshot import Children, Snapshot, StoreReport
from languagepipes_operator.observe.store_poller import Address, Stores
from languagepipes_operator.observe.stored_plans import is_planned
from languagepipes_operator.planning.nodes import Node

# A pod that is not ready for so long may have Events that say why.
_UNWELL_AFTER = timedelta(seconds=5)
_EVENTS_KEPT_SECONDS, _OLD_EVENTS_KEPT_SECONDS = 5.0, 30.0
_RECENT_SECONDS = 300.0


@dataclass(frozen=True)
class _Warnings:
    """Warning Events by what they are about. since: from when on something has been unwell, with reads in between."""

    read_at: float
    since: float
    by_object: Mapping[str, tuple[Manifest, ...]]

    def is_old(self, now: float) -> bool:
        """What has been unwell for long is looked at less often: each read is a whole list."""
        valid_seconds = _EVENTS_KEPT_SECONDS if now - self.since < _RECENT_SECONDS else _OLD_EVENTS_KEPT_SECONDS
        return now - self.read_at > valid_seconds


class Observer:
    """Takes snapshots of pipes."""

    def __init__(
        self,
        kube: Kube,
        caches: Caches,
        stores: Stores,
        reachability: Reachability,
        rings: RingProbe,
        loads: LoadProbe,
        http: aiohttp.ClientSession,
    ) -> None:
        self._kube = kube
        self._reachability = reachability
        self._rings = rings
        self._loads = loads
        self._caches = caches
        self._stores = stores
        self._http = http
        # Of a namespace, for the pipes in it to share.
        self._warnings: dict[str, _Warnings] = {}

    async def observe(self, raw: Manifest) -> Snapshot:
        """Raises languagepipes_api.resource_errors.ResourceError for a resource that this version cannot read."""
        metadata = raw["metadata"]
        key = ObjectKey(metadata["namespace"], metadata["name"])
        now = datetime.now(UTC)
        pipe = parse_pipe(raw, local=False)
        children = self.children(key, metadata["uid"])
        store, store_key = self._store(key, children)
        desired = self._loads.desired(raw, existing=len(_staying(children)), now=now)
        replicas = pipe.spec.replicas if desired is None else max(1, desired)
        return Snapshot(
            pipe=pipe,
            raw=raw,
            children=children,
            now=now,
            # The scheduler's words are explained by what nodes have.
            nodes=await _built(self._caches.look(key, own=False)) if _is_unscheduled(children) else None,
            store=store,
            store_key=store_key,
            members=await self._members(children, now, ready=is_ready(raw) and not _is_shrinking(replicas, children)),
            events=await self._events(key.namespace, unwell(children, now)),
            desired=desired,
            load_unknown=self._loads.is_silent(key),
            emptied=self._caches.emptied,
        )

    def _store(self, pipe: ObjectKey, children: Children) -> tuple[StoreReport | None, str]:
        """The last answer, and which store gave it: one of a pipe's stores is asked at a time."""
        for key in store_keys(children):
            report = self._stores.latest(pipe, store_address(children, key))
            if report is not None:
                return report, key
        return None, ""

    def children(self, pipe: ObjectKey, uid: str) -> Children:
        """From the caches alone."""
        owned: dict[Kind, dict[str, Manifest]] = {kind: {} for kind in CHILDREN}
        foreign: dict[str, Manifest] = {}
        for kind in CHILDREN:
            for item in self._caches.children(kind, pipe):
                if owned_by(item, uid):
                    owned[kind][item["metadata"]["name"]] = item
                else:
                    foreign[title(item)] = item
        return Children(
            deployments=owned[DEPLOYMENT],
            services=owned[SERVICE],
            secrets=owned[SECRET],
            config_maps=owned[CONFIG_MAP],
            claims=owned[CLAIM],
            budgets=owned[BUDGET],
            policies=owned[POLICY],
            pods={item["metadata"]["name"]: self._seen(item) for item in self._caches.children(POD, pipe)},
            foreign=foreign,
        )

    def _is_lost(self, pod: Manifest) -> bool:
        return pod.get("spec", {}).get("nodeName") in self._reachability.lost

    def _seen(self, pod: Manifest) -> Manifest:
        """On a node that does not answer: not ready, as the node controller will mark it half a minute later."""
        if not self._is_lost(pod) or not is_ready(pod):
            return pod
        others = [each for each in pod["status"]["conditions"] if each.get("type") != "Ready"]
        return {**pod, "status": {**pod["status"], "conditions": [*others, {"type": "Ready", "status": "False"}]}}

    def plans(self, snapshot: Snapshot) -> bool:
        """Whether what is decided depends on what nodes have free."""
        return (
            not is_planned(snapshot.pipe.spec, snapshot.children.config_maps.values())
            or _is_growing(snapshot.replicas, snapshot.children)
            or any(ANNOTATION_GAVE_WAY in annotations_of(each) for each in snapshot.children.deployments.values())
        )

    async def with_nodes(self, snapshot: Snapshot) -> Snapshot:
        """With the nodes as they are at this moment, if they may be read."""
        key = ObjectKey(snapshot.pipe.namespace, snapshot.pipe.name)
        others, everything = self._caches.look(key, own=False), self._caches.look(key, own=True)
        return replace(snapshot, nodes=await _built(others), occupied_nodes=await _built(everything))

    async def _members(self, children: Children, now: datetime, *, ready: bool) -> dict[str, MemberStatus]:
        """Reports of all members while the CA is rotated; else of those that run and are not ready, for the reason; and
        of Ready End Models while the pipe is not Ready (ready: what its status says), a stage is not, the ring probe
        found the ring down, or one of them is to go: so the status never turns Ready without their word, and the one
        with the fewest requests goes.
        """
        all_members = ca_is_rotated(children.secrets)
        ready = ready and all(is_ready(pod) for pod in children.pods.values() if label(pod, LABEL_ROLE) == "stage")
        pods = [
            pod
            for pod in children.pods.values()
            if is_active(pod)
            and _ip(pod)
            and not self._is_lost(pod)
            and (all_members or _explains_itself(pod, now) or self._knows_of_its_ring(pod, ready=ready))
        ]
        reports = await asyncio.gather(*(self._report(pod) for pod in pods))
        return {
            pod["metadata"]["name"]: report for pod, report in zip(pods, reports, strict=True) if report is not None
        }

    def _knows_of_its_ring(self, pod: Manifest, *, ready: bool) -> bool:
        if label(pod, LABEL_ROLE) != "end-model" or not is_ready(pod):
            return False
        return not ready or pod["metadata"]["uid"] in self._rings.down

    async def _report(self, pod: Manifest) -> MemberStatus | None:
        """Of a Ready End Model whose ring was down and that does not answer now, what it answered last."""
        report = await ask_member(self._http, _ip(pod))
        if label(pod, LABEL_ROLE) != "end-model":
            return report
        self._rings.note(pod, report)
        if not is_ready(pod):
            return report
        return report or self._rings.down.get(pod["metadata"]["uid"])

    async def _events(self, namespace: str, about: Sequence[str]) -> dict[str, tuple[Manifest, ...]]:
        now, known = time.monotonic(), self._warnings.get(namespace)
        if known is not None and known.is_old(now):
            known = None
        if not about:
            if known is None:
                self._warnings.pop(namespace, None)
            return {}
        if known is None:
            try:
                listed = await self._kube.list(EVENT, namespace=namespace, fields="type=Warning", trim=_trimmed_event)
            except KubeError:
                # They only explain; without them the reason is a vaguer one.
                return {}
            before = self._warnings.get(namespace)
            known = _Warnings(now, before.since if before else now, _by_object(listed.items))
            self._warnings[namespace] = known
        return {name: known.by_object[name] for name in about if name in known.by_object}


async def _built(look: Look | None) -> tuple[Node, ...] | None:
    """In a thread: there may be thousands of them."""
    return None if look is None else await asyncio.to_thread(look.nodes)


def _explains_itself(pod: Manifest, now: datetime) -> bool:
    """An End Model whose ring is down reports why at once; a stage that is still loading has nothing to report."""
    runs = any(container_state(each, "running") for each in container_statuses(pod))
    if not runs or is_ready(pod):
        return False
    role = label(pod, LABEL_ROLE)
    return role == "end-model" or (role == "stage" and now - _since(pod, now) >= _UNWELL_AFTER)


def store_address(children: Children, key: str) -> Address | None:
    """Where to ask the store of that key, once a pod of its current Deployment runs."""
    store = store_of(children, key)
    if store.pod is None or not store.rolled_out or not _ip(store.pod):
        return None
    return Address(_ip(store.pod), store.pod["metadata"]["uid"])


def unwell(children: Children, now: datetime) -> list[str]:
    """Pods that are not ready for a while, and claims that are not bound, as "Kind/name"."""
    found = [f"Pod/{name}" for name, pod in children.pods.items() if not is_ready(pod)]
    found += [f"PersistentVolumeClaim/{name}" for name, claim in children.claims.items() if not _is_bound(claim)]
    things = {f"Pod/{name}": pod for name, pod in children.pods.items()}
    things |= {f"PersistentVolumeClaim/{name}": claim for name, claim in children.claims.items()}
    return [name for name in found if now - _since(things[name], now) >= _UNWELL_AFTER]


def unfinished(children: Children) -> bool:
    """Whether something is still starting, or is stuck: then the status may change with time alone."""
    return not all(map(is_ready, children.pods.values())) or not all(map(_is_bound, children.claims.values()))


def _is_bound(claim: Manifest) -> bool:
    return bool(claim.get("status", {}).get("phase") == "Bound")


def _is_unscheduled(children: Children) -> bool:
    return any(not pod.get("spec", {}).get("nodeName") for pod in children.pods.values())


def _is_growing(replicas: int, children: Children) -> bool:
    """Whether replicas are about to be made, which need room, and prefer nodes without other replicas."""
    return replicas > len(_there(children))


def _is_shrinking(replicas: int, children: Children) -> bool:
    """Whether there are more replicas than are asked for."""
    return len(_there(children)) > replicas


def _there(children: Children) -> set[str]:
    """The numbers of replicas that have a Deployment."""
    return {label(item, LABEL_REPLICA) for item in children.deployments.values()} - {""}


def _staying(children: Children) -> set[str]:
    """Those of them that were not told to go."""
    going = {
        label(item, LABEL_REPLICA)
        for item in children.deployments.values()
        if ANNOTATION_DRAINING in annotations_of(item)
    }
    return _there(children) - going


def _by_object(events: Sequence[Manifest]) -> dict[str, tuple[Manifest, ...]]:
    found: dict[str, list[Manifest]] = defaultdict(list)
    for event in events:
        about = event.get("involvedObject", {})
        found[f"{about.get('kind')}/{about.get('name')}"].append(event)
    return {name: tuple(sorted(items, key=_event_time, reverse=True)) for name, items in found.items()}


def _trimmed_event(event: Manifest) -> Manifest:
    fields = ("involvedObject", "type", "reason", "message", "series", "count", "lastTimestamp", "eventTime", "source")
    metadata = {key: value for key, value in event["metadata"].items() if key in ("name", "creationTimestamp")}
    return {"metadata": metadata, **{key: event[key] for key in fields if key in event}}


def _event_time(event: Manifest) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


def _ip(pod: Manifest) -> str:
    return str(pod.get("status", {}).get("podIP") or "")


def _since(item: Manifest, now: datetime) -> datetime:
    """Since when a pod has not been ready, or another object has been there."""
    condition = pod_condition(item, "Ready")
    text = condition.get("lastTransitionTime") or item["metadata"].get("creationTimestamp")
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return now
