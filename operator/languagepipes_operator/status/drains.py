"""The condition Progressing while a node is being emptied that has an End Model."""

from __future__ import annotations

from collections.abc import Iterator

from languagepipes_operator.decide.drains import Drains
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.condition_state import ConditionState
from languagepipes_operator.status.diagnosis import Diagnosis, failures_beside
from languagepipes_operator.status.failures import bounded, summary
from languagepipes_operator.status.outcome import Outcome


def being_emptied(snapshot: Snapshot, outcome: Outcome, found: Diagnosis) -> ConditionState | None:
    """None where no End Model has to leave its node, or a replica of another revision is to take its place anyway."""
    drains, rollout = outcome.drains, outcome.rollout or Rollout()
    cause = summary(failures_beside(found, snapshot))
    why = [] if cause is None else [f"Cause: {cause.message}"]
    if drains.admitted:
        return ConditionState("False", "EvictionAdmitted", bounded(". ".join([*words_of_evictions(drains), *why])))
    words = [_words(drains.nodes[number], number, rollout) for number in rollout.leaving if number in drains.nodes]
    if not words:
        return None
    return ConditionState("True", "NodeDraining", bounded(". ".join(["; ".join(words), *why])))


def words_of_evictions(drains: Drains) -> Iterator[str]:
    """A sentence for each End Model that may be evicted."""
    for number, why in drains.admitted.items():
        yield (
            f"node {drains.nodes[number]} is being emptied, and {why}: the End Model of replica {number} may be "
            "evicted, which ends the requests there. To keep them, uncordon the node; or make room for a replica on "
            "other nodes"
        )


def _words(node: str, number: int, rollout: Rollout) -> str:
    beside = f" (replica {', '.join(map(str, rollout.beside))} is starting)" if rollout.beside else ""
    return (
        f"node {node} is being emptied: replica {number}, whose End Model is there, serves until a replica on other "
        f"nodes is ready{beside}, and then goes"
    )
