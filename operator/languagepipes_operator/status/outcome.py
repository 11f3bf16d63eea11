"""What came of one reconcile, as far as the status reports it: a part of what was decided, and what was refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from languagepipes_operator.decide.drains import Drains
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning.errors import PlanError


@dataclass(frozen=True)
class Outcome:
    """plan, running, refusal, revision, rollout, idle, paused, held_back, drains: as `decide.decision` has them.

    conflicts: "Kind/name" of children whose name an object of another owner has. blocking_errors: "Kind/name: message"
    for each child that the API server refuses as it stands (a quota, admission, a field that cannot be changed);
    non_blocking_errors: the same for what no member needs in order to run.
    """

    plan: StoredPlan | None = None
    running: StoredPlan | None = None
    refusal: PlanError | None = None
    revision: str | None = None
    rollout: Rollout | None = None
    conflicts: tuple[str, ...] = ()
    blocking_errors: tuple[str, ...] = ()
    non_blocking_errors: tuple[str, ...] = ()
    idle: bool = False
    paused: bool = False
    held_back: tuple[str, ...] = ()
    drains: Drains = field(default_factory=Drains)
