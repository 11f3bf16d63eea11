"""Which replicas a pipe has: their numbers. A replica keeps its number as long as it lives."""

from __future__ import annotations

from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE

from languagepipes_operator.observe.snapshot import Children


def replica_numbers(children: Children, replicas: int) -> tuple[int, ...]:
    """As many as `spec.replicas` asks for, in order. Whoever asks about a pipe's replicas asks here.

    Of the replicas that are there, those that answer stay first, then the lower numbers; new ones take the lowest
    numbers that are free.
    """
    answering: dict[int, bool] = {}
    for live in children.deployments.values():
        found = live["metadata"].get("labels", {})
        number = found.get(LABEL_REPLICA, "")
        if not number.isdecimal() or live["metadata"].get("deletionTimestamp"):
            continue
        ready = found.get(LABEL_ROLE) == "end-model" and live.get("status", {}).get("readyReplicas", 0) > 0
        answering[int(number)] = answering.get(int(number), False) or ready
    kept = sorted(answering, key=lambda replica: (not answering[replica], replica))[:replicas]
    free = (number for number in range(replicas + len(kept)) if number not in kept)
    return tuple(sorted([*kept, *(next(free) for _ in range(replicas - len(kept)))]))
