"""What a drain may evict now, replica by replica. Pure.

Nothing is evicted before it was decided here: a budget admits none, and those who drain try again every few seconds.
Stages that share a node are admitted together, so that their replica pauses once; of several replicas one at a time. An
End Model cannot leave its node without ending what it answers, so its replica is replaced (`decide.rollout`), and its
budget admits it only where that cannot be done, or was not in time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from languagepipes_api.names import LABEL_ROLE

from languagepipes_operator.decide.replicas import deployments_of, existing, holds_requests, is_draining, ready_since
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.observe.ownership import Member, label, member_of, time_of
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.planning.selection import tolerates


@dataclass(frozen=True)
class Budget:
    """How many of a replica's stages, and of its End Model (0 or 1), may be away at the same time, those that are not
    ready included. keeps_waiting: whether requests may be waiting there, so that an End Model that is not ready counts.
    """

    replica: int
    stages: int = 1
    end_model: int = 1
    keeps_waiting: bool = False


@dataclass(frozen=True)
class Drains:
    """budgets: of every replica. nodes: by replica, the node that its End Model has to leave. admitted: by replica, why
    its End Model may be evicted though nothing can take over. due: when waiting alone makes a difference.
    """

    budgets: tuple[Budget, ...] = ()
    nodes: Mapping[int, str] = field(default_factory=dict)
    admitted: Mapping[int, str] = field(default_factory=dict)
    due: datetime | None = None


def emptied_node(snapshot: Snapshot, replica: int) -> str:
    """The node that the End Model has to leave, or "". Costs no look at pods while no node is being emptied."""
    if not snapshot.emptied:
        return ""
    ends = (each for each in _members(snapshot, replica) if each.role == "end-model")
    return next((end.node for end in ends if end.node in snapshot.emptied), "")


def is_leaving(snapshot: Snapshot, replica: int) -> bool:
    """Whether the replica is to be replaced by one on other nodes: its End Model has to leave, requests may be there,
    and a new one may be made beside it and would not be put on the same node again.
    """
    node = emptied_node(snapshot, replica)
    if not node or _has_no_surge(snapshot) or _may_return(snapshot, node):
        return False
    return holds_requests(snapshot, replica)


def decide_drains(snapshot: Snapshot, rollout: Rollout | None) -> Drains:
    """rollout: which replicas there are to be; None where there is no plan, so that none can be made."""
    numbers = sorted({*existing(snapshot.children), *(() if rollout is None else rollout.updated)})
    if snapshot.emptied is None:
        # Nodes may not be read: one at a time, whatever that costs.
        return Drains(tuple(Budget(number) for number in numbers))
    nodes = {number: node for number in numbers if (node := emptied_node(snapshot, number))}
    going = {number for number in numbers if is_draining(snapshot.children, number)}
    going |= set() if rollout is None else {*rollout.draining}
    late, due = _late(snapshot, rollout, nodes)
    admitted = {
        number: why
        for number, node in nodes.items()
        # One that goes is ending already, and its answers need the stages.
        if number not in going and (why := _why_not_replaced(snapshot, rollout, node, late=late))
    }
    whole = [number for number in numbers if number not in going and (number not in nodes or number in admitted)]
    stages = _stages(snapshot, whole, going=going)
    budgets = (
        Budget(
            number,
            stages=stages.get(number, 0),
            end_model=int(number in admitted),
            keeps_waiting=holds_requests(snapshot, number),
        )
        for number in numbers
    )
    return Drains(tuple(budgets), nodes, admitted, due)


def _why_not_replaced(snapshot: Snapshot, rollout: Rollout | None, node: str, *, late: Collection[int]) -> str:
    """Why nothing can take over from a replica before its End Model goes, as the middle of a sentence; "" if it can."""
    spec = snapshot.pipe.spec
    if spec.paused:
        return "spec.paused is true, so that no replica is made elsewhere"
    if rollout is None:
        return "there is no plan to make a replica elsewhere by"
    if _may_return(snapshot, node):
        return "the End Model's template tolerates that, so that a new replica may be put there again"
    if _has_no_surge(snapshot):
        return "spec.rollout.maxSurge is 0, so that no replica may be made elsewhere before"
    if late:
        seconds = spec.rollout.progress_deadline_seconds
        numbers = ", ".join(map(str, sorted(late)))
        return f"replica {numbers} was not ready within {seconds} s (spec.rollout.progressDeadlineSeconds)"
    return ""


def _has_no_surge(snapshot: Snapshot) -> bool:
    return snapshot.pipe.spec.rollout.max_surge == 0 and snapshot.replicas <= 1


def _may_return(snapshot: Snapshot, node: str) -> bool:
    template = snapshot.pipe.spec.end_model.template
    tolerations = () if template is None else template.tolerations
    taints = (snapshot.emptied or {}).get(node, ())
    return all(any(tolerates(each, taint) for each in tolerations) for taint in taints)


def _late(
    snapshot: Snapshot, rollout: Rollout | None, nodes: Collection[int]
) -> tuple[frozenset[int], datetime | None]:
    """Replicas that were to take over and are not ready, and when the next of them is late. Counted from when the last
    Deployment was made.
    """
    if not nodes or rollout is None:
        return frozenset(), None
    limit = timedelta(seconds=snapshot.pipe.spec.rollout.progress_deadline_seconds)
    late, coming = set(), []
    for number in rollout.beside or rollout.updated:
        if number in nodes or ready_since(snapshot.children, number) is not None:
            continue
        found = deployments_of(snapshot.children, number)
        made = [time_of(each["metadata"].get("creationTimestamp")) for each in found]
        deadline = max((each for each in made if each is not None), default=snapshot.now) + limit
        if deadline <= snapshot.now:
            late.add(number)
        else:
            coming.append(deadline)
    return frozenset(late), min(coming, default=None)


def _stages(snapshot: Snapshot, replicas: Sequence[int], *, going: Collection[int]) -> dict[int, int]:
    """How many stages of each replica may be away: those on nodes that are being emptied, and those that are away.

    The disruption controller takes pods that are not ready from what a budget admits, so they are added to it. A ring
    that is down pauses no second time; else one replica at a time, so that the others serve.
    """
    if not snapshot.emptied:
        return {}
    found: dict[int, int] = {}
    for replica in replicas:
        stages = [each for each in _members(snapshot, replica) if each.role == "stage"]
        if any(each.node in snapshot.emptied for each in stages):
            found[replica] = sum(each.node in snapshot.emptied or not each.ready for each in stages)
    # Where the loss of a stage makes requests wait.
    serving = [
        number for number in existing(snapshot.children) if number not in going and holds_requests(snapshot, number)
    ]
    down = [number for number in serving if ready_since(snapshot.children, number) is None]
    first = down or [number for number in found if number in serving][:1]
    return {number: count for number, count in found.items() if number not in serving or number in first}


def _members(snapshot: Snapshot, replica: int) -> list[Member]:
    """Stages and End Model, as far as they have Deployments."""
    found = deployments_of(snapshot.children, replica)
    return [member_of(snapshot.children, each) for each in found if label(each, LABEL_ROLE) in ("stage", "end-model")]
