"""One reconcile of one pipe: observe → decide → render → apply → report.

Every event takes this one path, and so do a restart and a take-over of the Lease: each step follows from what is
observed, so that doing it again changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from languagepipes_api.names import Identity
from languagepipes_api.resource_errors import ResourceError

from languagepipes_operator.apply.applier import Applied, Applier, ConflictError
from languagepipes_operator.apply.surplus import surplus_budgets, surplus_children
from languagepipes_operator.certificates import secrets as certificates
from languagepipes_operator.children import render
from languagepipes_operator.children.budget import disruption_budgets
from languagepipes_operator.decide.decide import decide
from languagepipes_operator.decide.decision import Decision
from languagepipes_operator.decide.requeue import UNREADABLE_SECONDS, seconds_to_next
from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import NotFound
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import BUDGET, PIPE, Manifest
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.observer import Observer, store_address, unfinished
from languagepipes_operator.observe.pipes import Pipes
from languagepipes_operator.observe.reservations import Reservations
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.store_poller import Stores
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings
from languagepipes_operator.status.condition_state import condition_in
from languagepipes_operator.status.event_recorder import EventRecorder
from languagepipes_operator.status.outcome import Outcome
from languagepipes_operator.status.status import status_of, unreadable_status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A decision as manifests. children: all that must exist, but Secrets; surplus: live children that must not.

    surplus_secrets: of members that no longer exist. Where the pipe is paused, only certificates and disruption budgets
    are kept up to date.
    """

    children: tuple[Manifest, ...]
    surplus: tuple[Manifest, ...]
    certificates: certificates.SecretsDecision
    surplus_secrets: tuple[Manifest, ...] = ()


def wanted_of(snapshot: Snapshot, decision: Decision, settings: OperatorSettings) -> Wanted:
    """Pure, but for new keys."""
    secrets = certificates.decide(snapshot, decision.identities)
    if decision.paused:
        # A pause must not block the drain of a node.
        budgets = disruption_budgets(snapshot, decision.drains)
        return Wanted(tuple(budgets), tuple(surplus_budgets(budgets, snapshot.children)), secrets)
    children = render(snapshot, decision, settings)
    named = {secret["metadata"]["name"] for secret in secrets.secrets}
    return Wanted(
        children=tuple(children),
        surplus=tuple(
            surplus_children(
                children,
                snapshot.children,
                planned=decision.plan is not None or decision.running is not None,
                left_alone=decision.left_alone,
                other_stores={each.key for each in decision.other_stores},
            )
        ),
        certificates=secrets,
        surplus_secrets=tuple(item for name, item in snapshot.children.secrets.items() if name not in named),
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
        reservations: Reservations,
    ) -> None:
        self._kube = kube
        self._reservations = reservations
        self._planning = asyncio.Lock()
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
        """Another replica of the operator leads from now on, and it renews the certificates."""
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
        # 1. Observe: from the caches of the watches; where something is not well, also from Events and members.
        try:
            snapshot = await self._observer.observe(raw)
        except ResourceError as error:
            await self._write_status(raw, unreadable_status(raw, str(error), raw.get("status"), now=datetime.now(UTC)))
            return UNREADABLE_SECONDS
        # 2. Decide, and 3. render: pure. They take milliseconds, so a thread does it.
        if self._observer.plans(snapshot):
            # One plan after another: each sees what the one before has taken, though nothing of it is written yet.
            async with self._planning:
                snapshot = await self._observer.with_nodes(snapshot)
                decision, wanted = await asyncio.to_thread(self._decide_and_render, snapshot)
                self._reservations.book(key, wanted.children)
        else:
            decision, wanted = await asyncio.to_thread(self._decide_and_render, snapshot)
        # 4. Apply: the one step that changes the cluster.
        applied = await self._apply(snapshot, wanted)
        self._reservations.release(key)
        if decision.plan is not None:
            self._plans[snapshot.uid] = decision.plan
        short = decision.rollout is not None and decision.rollout.short is not None
        (self.refused.add if short or decision.refusal is not None else self.refused.discard)(key)
        # 5. Report: the status, Events, metrics.
        return await self._report(key, snapshot, decision, wanted, applied)

    def _decide_and_render(self, snapshot: Snapshot) -> tuple[Decision, Wanted]:
        decision = decide(snapshot, self._settings, self._plans.get(snapshot.uid))
        return decision, wanted_of(snapshot, decision, self._settings)

    async def _apply(self, snapshot: Snapshot, wanted: Wanted) -> Applied:
        """Certificates first, since pods mount them; then what must go; then what must be. Disruption budgets go last:
        for a moment an earlier version's selects the same pods as those in its place, which refuses every eviction; and
        never does none.
        """
        applied, uid = Applied(), snapshot.uid
        secrets = self._applier.pending(wanted.certificates.secrets, uid)
        children = self._applier.pending(wanted.children, uid)
        if not secrets and not children and not wanted.surplus and not wanted.surplus_secrets:
            return applied
        await self._check_alive(snapshot)
        await self._applier.write_in_turn(secrets, uid, applied)
        await self._applier.prune([each for each in wanted.surplus if each["kind"] != BUDGET.name], applied)
        if not wanted.surplus:
            # Members that have only just been deleted may still be talking.
            await self._applier.prune(wanted.surplus_secrets, applied)
        await self._applier.write(children, uid, applied)
        if not any(message.startswith(f"{BUDGET}/") for message in applied.non_blocking_errors):
            await self._applier.prune([each for each in wanted.surplus if each["kind"] == BUDGET.name], applied)
        if applied.writes:
            log.info("%s/%s: %s", snapshot.pipe.namespace, snapshot.pipe.name, ", ".join(applied.writes))
        for message in (*applied.blocking_errors, *applied.non_blocking_errors):
            log.warning("%s/%s: refused: %s", snapshot.pipe.namespace, snapshot.pipe.name, message)
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

    async def _report(
        self, key: ObjectKey, snapshot: Snapshot, decision: Decision, wanted: Wanted, applied: Applied
    ) -> float:
        """Write what holds now, and answer in how many seconds to look again."""
        children = self._observer.children(key, snapshot.uid)
        children = replace(children, foreign={**children.foreign, **applied.foreign})
        key_of_store = decision.store.store_key
        report = snapshot.store if snapshot.store_key == key_of_store else None
        after = replace(snapshot, children=children, store=report, store_key=key_of_store)
        outcome = Outcome(
            plan=decision.plan,
            running=decision.running,
            refusal=decision.refusal,
            revision=decision.revision,
            rollout=decision.rollout,
            idle=decision.idle,
            conflicts=tuple(sorted(applied.foreign)),
            blocking_errors=tuple(applied.blocking_errors),
            non_blocking_errors=tuple(applied.non_blocking_errors),
            paused=decision.paused,
            held_back=decision.held_back,
            drains=decision.drains,
        )
        status = status_of(
            after, outcome, snapshot.raw.get("status"), progress_written=self._progress_written.get(snapshot.uid)
        )
        await self._write_status(snapshot.raw, status)
        ready = condition_in(status, "Ready").get("status") == "True"
        self._poll_store(key, after, wanted, ready=ready)
        expires = wanted.certificates.leaves_expire_at.timestamp()
        self._metrics.certificate_seconds.labels(*key).set_function(lambda: expires - time.time())
        refused = applied.foreign or applied.blocking_errors or applied.non_blocking_errors
        return seconds_to_next(
            now=snapshot.now,
            due=(
                wanted.certificates.requeue_at,
                None if decision.rollout is None else decision.rollout.due,
                decision.drains.due,
            ),
            ready=ready,
            unwell=bool(applied.leaving) or (not ready and unfinished(children)),
            blocked=bool(refused) or key in self.refused,
        )

    def _poll_store(self, key: ObjectKey, snapshot: Snapshot, wanted: Wanted, *, ready: bool) -> None:
        """A store is asked only while its pipe is not Ready."""
        address = store_address(snapshot.children, snapshot.store_key)
        if ready or address is None:
            self._stores.leave(key)
        else:
            self._stores.watch(key, Identity(*key, -1, "store"), address, wanted.certificates.client)

    async def _write_status(self, raw: Manifest, status: dict[str, Any]) -> None:
        """Only if it says something else than before; Events tell what turned."""
        self._event_recorder.observe(raw)
        if status != (raw.get("status") or {}):
            await self._apply_status(raw, status)
        await self._event_recorder.record(raw, status)

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
        self._reservations.release(key)
        self._stores.leave(key)
        if uid is not None:
            self._plans.pop(uid, None)
            self._progress_written.pop(uid, None)
            self._event_recorder.forget(uid)
            self._metrics.forget_pipe(*key)
