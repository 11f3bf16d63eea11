"""PodDisruptionBudgets: two for each replica, so that an End Model never takes the place of a stage that may go."""

from __future__ import annotations

from typing import Any

from languagepipes_operator import names
from languagepipes_operator.children.labels import labels, metadata
from languagepipes_operator.decide.drains import Budget, Drains
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot


def disruption_budgets(snapshot: Snapshot, drains: Drains) -> list[Manifest]:
    """The store is outside: a running ring needs none, and one that fetches for hours must not block a drain.

    A member that is not ready may go at any time, but for an End Model at which requests wait.
    """
    return [
        manifest
        for each in drains.budgets
        for manifest in (
            _budget(snapshot, each, "stage", each.stages, "AlwaysAllow"),
            _budget(
                snapshot,
                each,
                "end-model",
                each.end_model,
                "IfHealthyBudget" if each.keeps_waiting and not each.end_model else "AlwaysAllow",
            ),
        )
    ]


def _budget(snapshot: Snapshot, budget: Budget, role: str, most: int, unready: str) -> Manifest:
    pipe = snapshot.pipe.name
    own = labels(pipe, role, replica=budget.replica)
    spec: dict[str, Any] = {
        "maxUnavailable": most,
        "unhealthyPodEvictionPolicy": unready,
        "selector": {"matchLabels": own},
    }
    whose = "stages" if role == "stage" else role
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(snapshot, names.budget(pipe, budget.replica, whose), own),
        "spec": spec,
    }
