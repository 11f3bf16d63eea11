"""What is true of a pipe and what is wrong with it, part by part, from one snapshot. `conditions` puts it into words.

The order in which causes are reported is written here, in `Diagnosis.causes`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from languagepipes_api.names import LABEL_REPLICA, STORE_PORT
from languagepipes_api.plan import Plan

from languagepipes_operator.decide.give_way import gave_way, is_stopped, retry_at
from languagepipes_operator.decide.replicas import deployments_of, existing
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.endpoint import takes_requests
from languagepipes_operator.observe.ownership import (
    Member,
    end_models,
    label,
    member_of,
    name_of,
    replica_of,
    store_of,
)
from languagepipes_operator.observe.ring_probe import ring_is_down
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.failures import Failure, external_failure, failure, quoted, refusals, refused
from languagepipes_operator.status.outcome import Outcome
from languagepipes_operator.status.pods import pod_failures
from languagepipes_operator.status.recovery import Recovery, recoveries
from languagepipes_operator.status.scheduling import unschedulable
from languagepipes_operator.status.volumes import volume_failures

# The operator asks every five seconds, and waits three for an answer.
MISSES_THAT_COUNT = 6


@dataclass(frozen=True)
class Diagnosis:
    """plan: the one that the replicas run. planned: whether it is in force for the spec as it stands. replicas: those
    that run the revision asked for and stay (while the pipe is paused: as many as there are), each its stages in order
    and its End Model last; empty without a plan. outdated: of replicas that serve until those do, or until there is a
    plan for the spec, the members that are not ready. recovering: those of them whose requests wait until they are
    whole again. accepting: replicas of any plan that the Service leads to. answering: those of them that answer at
    once. existing: those with an End Model at all. replaced: whether replicas are still there that are to go.
    beside: of replicas that are to take over from one whose node is being emptied, the members that are not ready.
    non_blocking: what the API server refuses and no member needs in order to run. of_growth: why fewer replicas are
    made than are asked for, or one gave way.
    """

    store: Member
    plan: Plan | None
    planned: bool
    replicas: tuple[tuple[Member, ...], ...]
    outdated: tuple[Member, ...]
    beside: tuple[Member, ...]
    recovering: tuple[Recovery, ...]
    accepting: int
    answering: int
    existing: int
    replaced: bool
    of_names: tuple[Failure, ...]
    non_blocking: tuple[Failure, ...]
    of_plan: tuple[Failure, ...]
    of_growth: tuple[Failure, ...]
    of_store: tuple[Failure, ...]
    of_stages: tuple[Failure, ...]
    of_end_models: tuple[Failure, ...]

    @property
    def causes(self) -> tuple[Failure, ...]:
        """All that is wrong, the most causal first: what cannot be made, then what cannot be fetched, then what does
        not run, and last the ring, which needs all of them.
        """
        # A store that only went away does not stop a ring, and its members report better what they wait for.
        of_store, away = _split(self.of_store)
        return (*self.of_names, *self.of_plan, *self.of_growth, *of_store, *self.of_stages, *away, *self.of_end_models)

    @property
    def ready_replicas(self) -> int:
        """Replicas that run the plan, whose members are ready, and whose ring is not known to be down."""
        waiting = {each.replica for each in self.recovering}
        return sum(replica[-1].ready and replica[-1].replica not in waiting for replica in self.replicas)

    @property
    def needing_a_person(self) -> tuple[Failure, ...]:
        """Those of the causes that do not pass by themselves; of the store only while a stage needs it to load."""
        of_store = self.of_store if any(not member.ready for members in self.stages for member in members) else ()
        found = (*self.of_names, *self.of_plan, *self.of_growth, *of_store, *self.of_stages, *self.of_end_models)
        return tuple(each for each in found if not each.waits)

    @property
    def stages(self) -> tuple[tuple[Member, ...], ...]:
        """For each stage of the plan its members, by replica."""
        count = 0 if self.plan is None else len(self.plan.stages)
        return tuple(tuple(replica[place] for replica in self.replicas) for place in range(count))


def diagnose(snapshot: Snapshot, outcome: Outcome) -> Diagnosis:
    """Looks at the members that the plan in force wants, and at the store; what is being replaced is not diagnosed."""
    children = snapshot.children
    stored = outcome.plan or outcome.running
    plan = None if stored is None else stored.plan
    rollout = outcome.rollout or Rollout()
    replicas: tuple[tuple[Member, ...], ...] = ()
    if plan is not None:
        several = max(snapshot.replicas, len(existing(children)))
        replicas = tuple(
            replica_of(children, plan, replica, replicas=several)
            for replica in rollout.updated
            if replica not in rollout.beside
        )
    pods = end_models(children)
    accepting = [pod for pod in pods if takes_requests(pod, snapshot)]
    # An idle replica has no stages on purpose, and its ring is not expected to be up.
    recovering = () if outcome.idle else recoveries(replicas, plan, snapshot)
    waiting = {str(each.replica) for each in recovering if each.pauses}
    return Diagnosis(
        store=(store := store_of(children, snapshot.store_key)),
        plan=plan,
        planned=outcome.plan is not None,
        replicas=replicas,
        outdated=tuple(
            member
            for replica in (existing(children) if outcome.plan is None else rollout.outdated)
            for member in map(partial(member_of, children), deployments_of(children, replica))
            if not member.ready
        ),
        beside=tuple(
            member
            for replica in rollout.beside
            for member in map(partial(member_of, children), deployments_of(children, replica))
            if not member.ready
        ),
        recovering=recovering,
        accepting=len({label(pod, LABEL_REPLICA) for pod in accepting}),
        answering=len({label(pod, LABEL_REPLICA) for pod in accepting if not _ring_is_down(pod, snapshot)} - waiting),
        existing=len({label(pod, LABEL_REPLICA) for pod in pods}),
        replaced=plan is not None and bool({*existing(children)} - ({*rollout.updated} - {*rollout.leaving})),
        of_names=_of_names(snapshot, outcome),
        non_blocking=tuple(map(_denied, outcome.non_blocking_errors)),
        of_plan=() if outcome.refusal is None else (external_failure(outcome.refusal.reason, outcome.refusal.message),),
        of_growth=tuple(_of_growth(snapshot, rollout)),
        of_store=_of_store(snapshot, store),
        of_stages=tuple(
            found
            for replica in (() if outcome.idle else replicas)
            for stage in replica[:-1]
            if not stage.ready
            for found in _of(stage, snapshot)
        ),
        of_end_models=tuple(found for replica in replicas for found in _of_end_model(replica, snapshot)),
    )


def _of_growth(snapshot: Snapshot, rollout: Rollout) -> Iterator[Failure]:
    """Why there are fewer replicas than are asked for: there is no room for more, or one gave way."""
    for replica in rollout.updated:
        way = gave_way(snapshot.children, replica)
        if way is not None and is_stopped(snapshot.children, replica):
            yield failure(
                "GaveWay",
                f"replica {replica}: not all its pods found a node within "
                f"{snapshot.pipe.spec.rollout.progress_deadline_seconds} s (spec.rollout.progressDeadlineSeconds), so "
                "its pods were stopped and what they held is free for others. It is tried again when there is room, "
                f"not before {retry_at(way, snapshot, replica):%H:%M:%S} UTC (attempt {way.attempts + 1}): add what is "
                f"short, or use fewer or smaller stages. The scheduler's words: {quoted(way.why)}",
            )
    if rollout.short is not None:
        yield external_failure(
            rollout.short.reason,
            f"only {len(rollout.updated)} of {snapshot.replicas} replicas are made, and those that run stay: "
            f"for the next, {rollout.short.message}",
        )


def outdated_failures(found: Diagnosis, snapshot: Snapshot) -> tuple[Failure, ...]:
    """What is wrong with replicas that serve until new ones do."""
    return tuple(failure for member in found.outdated for failure in _of(member, snapshot))


def failures_beside(found: Diagnosis, snapshot: Snapshot) -> tuple[Failure, ...]:
    """What keeps replicas from taking over from one whose node is being emptied."""
    return tuple(failure for member in found.beside for failure in _of(member, snapshot))


def _ring_is_down(end_model: Manifest, snapshot: Snapshot) -> bool:
    report = snapshot.members.get(name_of(end_model))
    return report is not None and ring_is_down(report)


def _of_names(snapshot: Snapshot, outcome: Outcome) -> tuple[Failure, ...]:
    taken = [_conflict(snapshot, name) for name in sorted(outcome.conflicts)]
    return (*taken, *map(_denied, outcome.blocking_errors))


def _denied(words: str) -> Failure:
    name, _, said = words.partition(": ")
    return refused(name.replace("/", " ", 1), said, otherwise="ChildRefused")


def _conflict(snapshot: Snapshot, name: str) -> Failure:
    """`name` is "Kind/name". An object of a deleted pipe of this name goes away; any other object stays."""
    kind, _, own = name.partition("/")
    holder = snapshot.children.foreign.get(name)
    controller = _controller(holder) if holder is not None else {}
    if controller.get("kind") == "LanguagePipe" and controller.get("name") == snapshot.pipe.name:
        return failure(
            "WaitingForDeletion",
            f"{kind} {own} belongs to a deleted pipe of the same name: Kubernetes' garbage collector deletes it, and "
            "then the operator creates a new one",
        )
    of = f"belongs to {controller['kind']} {controller['name']}" if controller else "does not belong to the pipe"
    return failure(
        "NameConflict",
        f"{kind} {own} {of}, and the pipe needs an object of this name: delete the object (kubectl delete "
        f"{kind.lower()} {own}) or rename it, or give the pipe another name",
    )


def _controller(thing: Manifest) -> Manifest:
    owners = thing["metadata"].get("ownerReferences") or ()
    return next((dict(owner) for owner in owners if owner.get("controller")), {})


def _of_store(snapshot: Snapshot, store: Member) -> tuple[Failure, ...]:
    """Its volume, its pod, then what it reports itself."""
    report = snapshot.store
    found = list(volume_failures(snapshot.children.claims, snapshot.events, now=snapshot.now))
    if not store.ready:
        # Why there is no volume explains more than that the pod waits for it.
        found += [each for each in _of(store, snapshot) if not (found and each.reason == "VolumePending")]
    if report is not None and report.answered and report.reason:
        found.append(external_failure(report.reason, report.message, waits=not report.failed))
    elif report is not None and report.misses >= MISSES_THAT_COUNT and store.ready:
        found.append(
            failure(
                "StoreUnavailable",
                f"{store.title} is running but does not answer the operator on port {STORE_PORT} (a running ring "
                "does not need it): check that NetworkPolicies allow connections from the operator's namespace, and "
                "read the store's log",
            )
        )
    return tuple(found)


def _of(member: Member, snapshot: Snapshot) -> tuple[Failure, ...]:
    """Of one member that is not ready: why it has no pod, no node, or no running container."""
    pod_name = "" if member.pod is None else str(member.pod["metadata"]["name"])
    return (
        *refusals(member),
        *unschedulable(member, snapshot.nodes),
        *pod_failures(
            member,
            snapshot.events.get(f"Pod/{pod_name}", ()),
            snapshot.members.get(pod_name),
            spec=snapshot.pipe.spec,
            now=snapshot.now,
        ),
    )


def _of_end_model(replica: tuple[Member, ...], snapshot: Snapshot) -> tuple[Failure, ...]:
    """Its own failures; if it has none and every stage is ready, the error of the ring."""
    end, stages = replica[-1], replica[:-1]
    if end.ready:
        return ()
    found = _of(end, snapshot)
    if found or end.pod is None or not all(stage.ready for stage in stages):
        return found
    report = snapshot.members.get(str(end.pod["metadata"]["name"]))
    # Before it has loaded its own weights it joins no ring, and that is no failure.
    if report is None or report.state != "ready" or report.ring_ready or not report.ring_error:
        return ()
    return (
        failure(
            "RingDown",
            f"{end.title}: every stage is ready, but the ring health check fails ({quoted(report.ring_error)}). The "
            "End Model tries again without limit: read the members' logs, and check the namespace's NetworkPolicies",
        ),
    )


def _split(failures: tuple[Failure, ...]) -> tuple[tuple[Failure, ...], tuple[Failure, ...]]:
    gone = tuple(found for found in failures if found.reason == "StoreUnavailable")
    return tuple(found for found in failures if found not in gone), gone
