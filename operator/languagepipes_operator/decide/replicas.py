"""Which replicas a pipe has, and who belongs to each. A replica keeps its number as long as it exists. Pure."""

from __future__ import annotations

from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE, Identity
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.observe.snapshot import Children


def replica_numbers(children: Children, replicas: int) -> tuple[int, ...]:
    """The numbers of as many replicas as `spec.replicas` asks for, ascending.

    Of the replicas that exist, those whose members are all ready stay first, then those whose End Model is (requests
    may wait there for a lost stage), then the lower numbers; new ones take the lowest numbers that are free.
    """
    whole: dict[int, bool] = {}
    answering: dict[int, bool] = {}
    for live in children.deployments.values():
        found = live["metadata"].get("labels", {})
        number = found.get(LABEL_REPLICA, "")
        if not number.isdecimal() or live["metadata"].get("deletionTimestamp"):
            continue
        ready = live.get("status", {}).get("readyReplicas", 0) > 0
        whole[int(number)] = whole.get(int(number), True) and ready
        answering[int(number)] = answering.get(int(number), False) or (ready and found.get(LABEL_ROLE) == "end-model")
    staying = sorted(whole, key=lambda replica: (not whole[replica], not answering[replica], replica))[:replicas]
    free = (number for number in range(replicas + len(staying)) if number not in staying)
    return tuple(sorted([*staying, *(next(free) for _ in range(replicas - len(staying)))]))


def ring(pipe: LanguagePipe, plan: Plan, replica: int) -> list[Identity]:
    """A replica's members in the order of the pass: the stages, then the End Model."""
    stages = [Identity(pipe.namespace, pipe.name, replica, "stage", place) for place in range(1, len(plan.stages) + 1)]
    return [*stages, Identity(pipe.namespace, pipe.name, replica, "end-model")]
