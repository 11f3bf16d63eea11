"""Which replicas there are to be now, on the way from those that exist to those that are asked for. Pure.

A replica runs one revision for as long as it exists (`decide.revisions`). Where another is asked for, new replicas are
made beside the old, under numbers of their own; an old one goes once a new one can take its requests. What is decided
follows from what exists, and nothing is remembered: it is the same after a restart, and a change of mind in the middle
of a rollout is the next step like any other. Kubernetes' own Deployments follow the same two limits
(https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#rolling-update-deployment), except that here a
replica counts until it is gone, since it holds its memory until then.

A replica whose End Model is on a node that is being emptied (`decide.drains`) is replaced in the same way, though it
runs what is asked for, and it stays where that node is wanted again before another has taken over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from languagepipes_api.spec import RolloutSpec

from languagepipes_operator.planning.errors import PlanError

# A replica that has been ready for so long is available: by then every node's kube-proxy leads to it.
MIN_READY = timedelta(seconds=3)


@dataclass(frozen=True)
class Replica:
    """One that exists.

    updated: whether it runs the revision that is asked for. ready_since: since when all its members are ready; None
    while one is not. holds_requests: whether requests may be running or waiting there, ready or not. draining: whether
    it has been told to go, which is final. open_requests: how many it has; None where that is not known. leaving:
    whether its End Model has to leave its node; only of one that holds requests.
    """

    number: int
    updated: bool
    ready_since: datetime | None = None
    holds_requests: bool = False
    draining: bool = False
    open_requests: int | None = None
    leaving: bool = False

    def is_available(self, now: datetime) -> bool:
        return not self.draining and self.ready_since is not None and self.ready_since + MIN_READY <= now


@dataclass(frozen=True)
class Rollout:
    """Numbers of replicas, ascending. updated: those that run the revision asked for and stay, among them new ones.

    outdated: others that serve until those do. draining: those that go. due: when waiting alone makes a difference.
    leaving: those of `updated` that serve until replicas on other nodes do. beside: those of `updated` that are not
    ready and stand beside as many as are asked for, to take over from one that is leaving.
    short: why no nodes can take all replicas that are asked for; those that can be made are among `updated`.
    """

    updated: tuple[int, ...] = ()
    outdated: tuple[int, ...] = ()
    draining: tuple[int, ...] = ()
    due: datetime | None = None
    leaving: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()
    short: PlanError | None = None


def next_step(
    live: Sequence[Replica],
    *,
    wanted: int,
    limits: RolloutSpec,
    taken: Collection[int] = (),
    now: datetime,
    fits: Callable[[int], tuple[int, PlanError | None]] = lambda more: (more, None),
) -> Rollout:
    """wanted: how many replicas are asked for. taken: numbers that no new replica may have, beside those of `live`.
    fits(more): for how many replicas beside those that there are there is room, and what is short for the next. A
    replica that takes another's place is not asked about: the other's room will be free.
    """
    going = _to_drain(live, wanted=wanted, limits=limits, now=now)
    staying = [each for each in live if not each.draining and each.number not in going]
    updated = [each for each in staying if each.updated]
    leaving = [each.number for each in updated if each.leaving]
    room = wanted + limits.max_surge - len(live)
    # Those that are leaving are not counted: others take their places.
    count = max(0, min(room, wanted - (len(updated) - len(leaving))))
    more, short = min(count, wanted - len(staying)), None
    if more > 0:
        held, short = fits(more)
        count -= more - held
    new = _free({*taken, *(each.number for each in live)}, count)
    unready = [each.number for each in updated if not each.leaving and each.ready_since is None]
    excess = max(0, len(updated) + len(new) - wanted) if leaving else 0
    waits = [each.ready_since + MIN_READY for each in staying if each.ready_since is not None]
    return Rollout(
        updated=tuple(sorted([*(each.number for each in updated), *new])),
        outdated=tuple(sorted(each.number for each in staying if not each.updated)),
        draining=tuple(sorted(each.number for each in live if each.draining or each.number in going)),
        due=min((due for due in waits if due > now), default=None),
        leaving=tuple(sorted(leaving)),
        beside=tuple(sorted([*unready, *new], reverse=True)[:excess][::-1]),
        short=short,
    )


def _to_drain(live: Sequence[Replica], *, wanted: int, limits: RolloutSpec, now: datetime) -> set[int]:
    """Those that are not to stay, as far as enough others are available. One without requests goes at once.

    A node that is being emptied is no reason to serve nothing: one that is leaving goes only once another is available.
    """
    least = max(0, wanted - limits.max_unavailable)
    rest = sorted((each for each in live if not each.draining), key=lambda each: _order(each, now))
    updated = [each for each in rest if each.updated]
    leaving = [each for each in updated if each.leaving]
    surplus = [each for each in updated if not each.leaving]
    surplus = surplus[: max(0, len(surplus) - wanted)]
    going: set[int] = set()
    for each in [*(each for each in rest if not each.updated), *leaving, *surplus]:
        others = [other for other in rest if other is not each and other.number not in going]
        needed = max(least, min(1, wanted)) if each.updated and each.leaving else least
        if each.is_available(now):
            enough = sum(other.is_available(now) for other in others) >= needed
        elif each.ready_since is not None:
            # Ready for a moment only, and still more than one that only holds requests.
            enough = sum(other.ready_since is not None for other in others) >= needed
        else:
            enough = not each.holds_requests or sum(other.holds_requests for other in others) >= needed
        if enough:
            going.add(each.number)
    return going


def _order(replica: Replica, now: datetime) -> tuple[bool, bool, float, int]:
    """The first goes first: one that is not available, then the one with the fewest requests, then the latest."""
    requests = math.inf if replica.open_requests is None else replica.open_requests
    return (replica.is_available(now), replica.holds_requests, requests, -replica.number)


def _free(taken: Collection[int], count: int) -> list[int]:
    """The lowest numbers that nothing has."""
    found: list[int] = []
    number = 0
    while len(found) < count:
        if number not in taken:
            found.append(number)
        number += 1
    return found
