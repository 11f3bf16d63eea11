"""Which chains a pipe has: their numbers. A chain keeps its number as long as it lives."""

from __future__ import annotations

from languagepipes_api.names import LABEL_CHAIN, LABEL_ROLE

from languagepipes_operator.cluster.snapshot import Snapshot


def chains(snapshot: Snapshot) -> tuple[int, ...]:
    """As many as `spec.replicas` asks for, in order.

    Of the chains that are there, those that answer stay first, then the lower numbers; new ones take the lowest
    numbers that are free.
    """
    wanted = snapshot.pipe.spec.replicas
    answering: dict[int, bool] = {}
    for live in snapshot.children.deployments.values():
        found = live["metadata"].get("labels", {})
        number = found.get(LABEL_CHAIN, "")
        if not number.isdecimal() or live["metadata"].get("deletionTimestamp"):
            continue
        ready = found.get(LABEL_ROLE) == "end-model" and live.get("status", {}).get("readyReplicas", 0) > 0
        answering[int(number)] = answering.get(int(number), False) or ready
    kept = sorted(answering, key=lambda chain: (not answering[chain], chain))[:wanted]
    free = (number for number in range(wanted + len(kept)) if number not in kept)
    return tuple(sorted([*kept, *(next(free) for _ in range(wanted - len(kept)))]))
