"""What one reconcile decides about a pipe, as a value that can be printed. Pure data: `decide` makes it, `children`
renders it.
"""

from __future__ import annotations

from dataclasses import dataclass

from languagepipes_api.names import Identity

from languagepipes_operator.decide.last_applied import LastApplied
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning.errors import PlanError


@dataclass(frozen=True)
class DeploymentDecision:
    """How one member's Deployment must be.

    inputs: hash of what shapes its pods. last_applied: the manifest to apply again, since it was rendered for these
    inputs; None where a new one is to be rendered, with `image`, and with a preference for `node` if there is one.
    """

    identity: Identity
    name: str
    image: str
    inputs: str
    last_applied: LastApplied | None = None
    node: str | None = None


@dataclass(frozen=True)
class Decision:
    """plan: the one in force for the spec as it stands; None with `refusal`, or while facts are awaited. plan_is_new:
    whether it was made by this decision. store_revision: which revision of the model the store
    serves. replicas: their numbers. members: of all replicas, in the order of the ring, the End Model last; empty
    without a plan. identities: all that need a certificate: the members that are wanted, and those that still exist.
    publish_unready: whether the API's Service leads to End Models that are not Ready too.
    paused: the children are left as they are.
    """

    store: DeploymentDecision
    store_revision: str | None
    plan: StoredPlan | None = None
    plan_is_new: bool = False
    refusal: PlanError | None = None
    replicas: tuple[int, ...] = ()
    members: tuple[DeploymentDecision, ...] = ()
    identities: tuple[Identity, ...] = ()
    publish_unready: bool = False
    paused: bool = False
