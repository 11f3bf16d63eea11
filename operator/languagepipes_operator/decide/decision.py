"""What one reconcile decides about a pipe, as a value that can be printed. Pure data: `decide` makes it, `children`
renders it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from languagepipes_api.names import Identity

from languagepipes_operator.decide.drains import Drains
from languagepipes_operator.decide.last_applied import LastApplied
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning.errors import PlanError


@dataclass(frozen=True)
class DeploymentDecision:
    """How one member's Deployment must be.

    inputs: hash of what shapes its pods. last_applied: the manifest to apply again, since it was rendered for these
    inputs; None where a new one is to be rendered, with `image`, and with a preference for `node` if there is one.
    draining: its replica goes. stopped: it is to have no pod any more, or, where its replica gave way (gave_way: the
    annotation that says so), none for now. store_key: which of the pipe's stores it loads from, or is
    (`decide.stores`).
    """

    identity: Identity
    name: str
    image: str
    inputs: str
    last_applied: LastApplied | None = None
    node: str | None = None
    draining: bool = False
    stopped: bool = False
    store_key: str = ""
    gave_way: str = ""


@dataclass(frozen=True)
class OtherStore:
    """A store that serves members of another model than the spec's, as `decide.stores` finds it.

    source: of its model; None where its Deployment is gone, and with it what it was. deployment: as last applied; None
    where that is not known, and the Deployment stays as it is.
    """

    key: str
    name: str
    source: str | None
    deployment: DeploymentDecision | None


@dataclass(frozen=True)
class Decision:
    """plan: the one in force for the spec as it stands; None with `refusal`, or while facts are awaited. plan_is_new:
    whether it was made by this decision. running: without a plan for the spec, an older one whose replicas go on.
    store: of the spec's model. other_stores: those that members of another model load from. store_revision: which
    revision of the model the store serves. revision: of the members that plan and spec ask for
    (`decide.revisions`). rollout: which replicas there are to be, and which of them run it (or the plan `running`);
    while the pipe is paused, which there are. members: of all of them; of those that run it in the order of the ring,
    the End Model last; empty without `plan` and `running`. left_alone: names of Deployments that stay as they are.
    identities: all that need a certificate: the members that are wanted, and those that still exist. publish_unready:
    whether the API's Service leads to End Models that are not Ready too. idle: whether the only replica's
    stages are stopped since nobody asks. paused: the children are left as they are.
    held_back: what would change without the pause, in short sentences. drains: what a drain may evict now.
    """

    store: DeploymentDecision
    store_revision: str | None
    other_stores: tuple[OtherStore, ...] = ()
    plan: StoredPlan | None = None
    plan_is_new: bool = False
    refusal: PlanError | None = None
    running: StoredPlan | None = None
    revision: str | None = None
    rollout: Rollout | None = None
    members: tuple[DeploymentDecision, ...] = ()
    left_alone: frozenset[str] = frozenset()
    identities: tuple[Identity, ...] = ()
    publish_unready: bool = False
    idle: bool = False
    paused: bool = False
    held_back: tuple[str, ...] = ()
    drains: Drains = field(default_factory=Drains)

    @property
    def store_keys(self) -> frozenset[str]:
        """Of all stores that there are to be."""
        return frozenset((self.store.store_key, *(each.key for each in self.other_stores)))

    @property
    def replicas(self) -> tuple[int, ...]:
        """Numbers of the replicas that run the revision asked for and stay, ascending."""
        return () if self.rollout is None else self.rollout.updated
