"""One idempotent reconcile of one pipe: observe → decide → apply → report.

Every event takes this one path, and so do a restart and a take-over: what is done follows from what is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE, LABEL_STAGE, Identity
from languagepipes_api.resource_errors import ResourceError

from languagepipes_operator import children as manifests
from languagepipes_operator.apply.applier import Applied, Applier, ConflictError
from languagepipes_operator.certificates import secrets as pki
from languagepipes_operator.children.labels import ANNOTATION_INPUTS
from languagepipes_operator.decide import plan_choice as plans
from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import NotFound
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import PIPE
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.observer import Observer, store_address, unfinished
from languagepipes_operator.observe.pipes import Pipes
from languagepipes_operator.observe.snapshot import Children, Decision, Manifest, Snapshot, StoredPlan
from languagepipes_operator.observe.store_poller import Stores
from languagepipes_operator.settings import OperatorSettings
from languagepipes_operator.status.conditions import condition_in, status_of, unreadable_status
from languagepipes_operator.status.event_recorder import EventRecorder

# When to look again although nothing was heard: while something is not well, that its Events say why; while somebody
# stands in the way, that they may have gone; while a pipe is not Ready, since more can change than is watched.
_UNWELL_SECONDS = 5.0
_BLOCKED_SECONDS = 30.0
_NOT_READY_SECONDS = 60.0
_LONGEST_SECONDS = 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a snapshot asks for. children: all that must be, but Secrets; surplus: what must not be."""

    chosen: plans.Chosen
    children: tuple[Manifest, ...]
    surplus: tuple[Manifest, ...]
    pki: pki.PkiDecision
    stale_secrets: tuple[Manifest, ...] = ()
    paused: bool = False


def decide(snapshot: Snapshot, settings: OperatorSettings, remembered: StoredPlan | None = None) -> Work:
    """Pure, but for new keys. Takes milliseconds, so it belongs into a thread."""
    paused = snapshot.pipe.spec.paused
    # 1. The plan: the one that is kept, or a new one once the store of this very model has told its facts.
    store = manifests.store_children(snapshot, settings)
    chosen = plans.choose(
        snapshot, facts=_facts(snapshot, store), node_image=settings.node_image, remembered=remembered
    )
    if paused and chosen.made:
        chosen = plans.Chosen()
    # 2. The children. Without a plan for the spec as it stands, an older plan's replicas go on as they are.
    children = manifests.store_children(snapshot, settings, chosen.kept)
    if chosen.kept is not None:
        children += manifests.plan_children(snapshot, chosen.kept, settings)
    surplus = [] if paused else _surplus(children, snapshot.children, all_roles=chosen.kept is not None)
    # 3. Certificates for all that are wanted and all that are still there.
    members = _identities(snapshot, [*children, *snapshot.children.deployments.values()])
    certificates = pki.decide(snapshot, members)
    named = {secret["metadata"]["name"] for secret in certificates.secrets}
    stale = tuple(item for name, item in snapshot.children.secrets.items() if name not in named)
    return Work(
        chosen, () if paused else tuple(children), tuple(surplus), certificates, () if paused else stale, paused
    )


class Reconciler:
    """Reconciles pipes, each by one worker at a time."""

    def __init__(
        self,
        kube: Kube,
        pipes: Pipes,
        observer: Observer,
        applier: Applier,
        stores: Stores,
        settings: OperatorSettings,
        metrics: Metrics,
    ) -> None:
        self._kube = kube
        self._pipes = pipes
        self._observer = observer
        self._applier = applier
        self._stores = stores
        self._event_recorder = EventRecorder(kube, settings.identity)
        self._settings = settings
        self._metrics = metrics
        # By UID: the plan in force, should its ConfigMap be deleted; when progress was last written.
        self._plans: dict[str, StoredPlan] = {}
        self._progress_written: dict[str, datetime] = {}
        self._known: dict[ObjectKey, str] = {}
        # Pipes that have no plan for the spec as it stands: other nodes may give them one.
        self.refused: set[ObjectKey] = set()

    def rest(self) -> None:
        """Another replica acts from now on, and renews certificates."""
        self._metrics.certificate_seconds.clear()

    async def __call__(self, key: ObjectKey) -> float | None:
        """In how many seconds to look again. Raises ConflictError and KubeError, to be tried again with back-off."""
        began = time.monotonic()
        outcome = "retry"
        try:
            again = await self._reconcile(key)
            outcome = "gone" if key not in self._known else "done"
            return again
        finally:
            self._metrics.reconciles.labels(outcome).inc()
            self._metrics.reconcile_seconds.observe(time.monotonic() - began)

    async def _reconcile(self, key: ObjectKey) -> float | None:
        raw = self._pipes.get(key)
        if raw is None or "deletionTimestamp" in raw["metadata"]:
            self._forget(key)
            return None
        self._remember(key, raw)
        try:
            snapshot = await self._observer.observe(raw)
        except ResourceError as error:
            await self._write_status(raw, unreadable_status(raw, str(error), raw.get("status"), now=datetime.now(UTC)))
            return None
        work = await asyncio.to_thread(decide, snapshot, self._settings, self._plans.get(snapshot.uid))
        applied = await self._apply(snapshot, work)
        if work.chosen.kept is not None:
            self._plans[snapshot.uid] = work.chosen.kept
        (self.refused.discard if work.chosen.refusal is None else self.refused.add)(key)
        return await self._report(key, snapshot, work, applied)

    async def _apply(self, snapshot: Snapshot, work: Work) -> Applied:
        """Certificates first, since pods mount them; then what must go; then what must be."""
        applied, uid = Applied(), snapshot.uid
        secrets = self._applier.pending(work.pki.secrets, uid)
        children = self._applier.pending(work.children, uid)
        if not secrets and not children and not work.surplus and not work.stale_secrets:
            return applied
        await self._check_alive(snapshot)
        await self._applier.write_in_turn(secrets, uid, applied)
        await self._applier.prune(work.surplus, applied)
        if not work.surplus:
            # Members that have only just been deleted may still be talking.
            await self._applier.prune(work.stale_secrets, applied)
        await self._applier.write(children, uid, applied)
        if applied.writes:
            log.info("%s/%s: %s", snapshot.pipe.namespace, snapshot.pipe.name, ", ".join(applied.writes))
        for words in (*applied.denied, *applied.non_blocking_errors):
            log.warning("%s/%s: refused: %s", snapshot.pipe.namespace, snapshot.pipe.name, words)
        return applied

    async def _check_alive(self, snapshot: Snapshot) -> None:
        """Nothing is written for a pipe that is gone: a watch may have missed its end. Raises ConflictError."""
        key = ObjectKey(snapshot.pipe.namespace, snapshot.pipe.name)
        try:
            live = await self._kube.get(PIPE, key.name, namespace=key.namespace)
        except NotFound as error:
            self._pipes.gone(key, snapshot.uid)
            raise ConflictError("the pipe is gone") from error
        if live["metadata"]["uid"] != snapshot.uid or "deletionTimestamp" in live["metadata"]:
            self._pipes.seen(live)
            raise ConflictError("the pipe is another one now, or being deleted")

    async def _report(self, key: ObjectKey, snapshot: Snapshot, work: Work, applied: Applied) -> float:
        """Write what holds now, ask the store on or leave it be, and say when to look again."""
        children = self._observer.children(key, snapshot.uid)
        children = replace(children, foreign={**children.foreign, **applied.foreign})
        after = replace(snapshot, children=children)
        decision = Decision(
            plan=work.chosen.kept,
            refusal=work.chosen.refusal,
            conflicts=tuple(sorted(applied.foreign)),
            denied=tuple(applied.denied),
            non_blocking_errors=tuple(applied.non_blocking_errors),
            paused=work.paused,
        )
        status = status_of(
            after, decision, snapshot.raw.get("status"), progress_written=self._progress_written.get(snapshot.uid)
        )
        await self._write_status(snapshot.raw, status)
        ready = condition_in(status, "Ready").get("status") == "True"
        self._ask_store(key, after, work, ready=ready)
        expires = work.pki.leaves_expire_at.timestamp()
        self._metrics.certificate_seconds.labels(*key).set_function(lambda: expires - time.time())
        blocked = bool(applied.foreign or applied.denied or applied.non_blocking_errors)
        return _again(after, work, ready=ready, blocked=blocked, leaving=bool(applied.leaving))

    def _ask_store(self, key: ObjectKey, snapshot: Snapshot, work: Work, *, ready: bool) -> None:
        address = store_address(snapshot.children)
        if ready or address is None:
            self._stores.leave(key)
        else:
            self._stores.watch(key, Identity(*key, -1, "store"), address, work.pki.client)

    async def _write_status(self, raw: Manifest, status: dict[str, Any]) -> None:
        """Only if it says something else than before; Events tell what turned."""
        self._event_recorder.met(raw)
        if status != (raw.get("status") or {}):
            await self._apply_status(raw, status)
        await self._event_recorder.tell(raw, status)

    async def _apply_status(self, raw: Manifest, status: dict[str, Any]) -> None:
        metadata = raw["metadata"]
        name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
        body = {
            "apiVersion": PIPE.api_version,
            "kind": PIPE.name,
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "status": status,
        }
        try:
            self._pipes.written(await self._kube.apply(body, PIPE, subresource="status"))
        except NotFound as error:
            self._pipes.gone(ObjectKey(namespace, name), uid)
            raise ConflictError("the pipe is gone") from error
        if status.get("progress") != (raw.get("status") or {}).get("progress"):
            self._progress_written[uid] = datetime.now(UTC)

    def _remember(self, key: ObjectKey, raw: Manifest) -> None:
        uid = raw["metadata"]["uid"]
        if self._known.get(key) not in (None, uid):
            self._forget(key)
        self._known[key] = uid

    def _forget(self, key: ObjectKey) -> None:
        uid = self._known.pop(key, None)
        self.refused.discard(key)
        self._stores.leave(key)
        if uid is not None:
            self._plans.pop(uid, None)
            self._progress_written.pop(uid, None)
            self._event_recorder.forget(uid)
            self._metrics.forget_pipe(*key)


def _facts(snapshot: Snapshot, store: Iterable[Manifest]) -> Any:
    """What the store said, if it is the store of the spec as it stands and not the one that is about to be replaced."""
    if snapshot.store is None:
        return None
    for wanted in store:
        if wanted["kind"] == "Deployment":
            live = snapshot.children.deployments.get(wanted["metadata"]["name"])
            if live is not None and _inputs(live) == _inputs(wanted):
                return snapshot.store.facts
    return None


def _inputs(deployment: Manifest) -> str:
    return str((deployment["metadata"].get("annotations") or {}).get(ANNOTATION_INPUTS, ""))


def _surplus(wanted: Sequence[Manifest], children: Children, *, all_roles: bool) -> list[Manifest]:
    """What nobody asks for any more, Deployments first; Secrets are not judged here."""
    asked = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
    found: list[Manifest] = []
    for kind, items in (
        ("Deployment", children.deployments),
        ("PodDisruptionBudget", children.budgets),
        ("NetworkPolicy", children.policies),
        ("PersistentVolumeClaim", children.claims),
        ("Service", children.services),
        ("ConfigMap", children.config_maps),
    ):
        for name, item in items.items():
            role = (item["metadata"].get("labels") or {}).get(LABEL_ROLE)
            gone = "deletionTimestamp" in item["metadata"]
            if (kind, name) not in asked and not gone and (all_roles or role == "store"):
                found.append(item)
    return found


def _identities(snapshot: Snapshot, items: Iterable[Manifest]) -> list[Identity]:
    """Of everybody who has a Deployment, or is to have one, in a fixed order; the store is always among them."""
    namespace, pipe = snapshot.pipe.namespace, snapshot.pipe.name
    found = {Identity(namespace, pipe, -1, "store")}
    for item in items:
        labels = item["metadata"].get("labels") or {}
        role, replica, stage = labels.get(LABEL_ROLE), labels.get(LABEL_REPLICA, ""), labels.get(LABEL_STAGE, "0")
        if item["kind"] != "Deployment" or not replica.isdecimal() or not stage.isdecimal():
            continue
        if role == "stage":
            found.add(Identity(namespace, pipe, int(replica), "stage", int(stage)))
        elif role == "end-model":
            found.add(Identity(namespace, pipe, int(replica), "end-model"))
    return sorted(found, key=lambda identity: (identity.replica, identity.role, identity.index))


def _again(snapshot: Snapshot, work: Work, *, ready: bool, blocked: bool, leaving: bool) -> float:
    seconds = [_LONGEST_SECONDS, max(0.0, (work.pki.requeue_at - snapshot.now).total_seconds())]
    if leaving or (not ready and unfinished(snapshot.children)):
        seconds.append(_UNWELL_SECONDS)
    if blocked or work.chosen.refusal is not None:
        seconds.append(_BLOCKED_SECONDS)
    if not ready:
        seconds.append(_NOT_READY_SECONDS)
    return min(seconds)
