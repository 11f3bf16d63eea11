"""The revision of a pipe: everything that shapes the pods of a replica, but for whose pods they are. Pure.

It is no label of a Deployment: each carries the hash of its inputs (`decide.inputs`) since the first version, and a
replica runs a revision if those of all its Deployments are the ones that the revision asks for. So nothing is written
to the Deployments of an earlier version, and going back to what runs finds it running.
"""

from __future__ import annotations

from languagepipes_api.spec import LanguagePipe

from languagepipes_operator import names
from languagepipes_operator.decide.inputs import member_inputs
from languagepipes_operator.decide.last_applied import inputs_of
from languagepipes_operator.decide.replicas import deployments_of, ring
from languagepipes_operator.digest import digest
from languagepipes_operator.observe.ownership import identity_of, name_of
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings


def revision_of(pipe: LanguagePipe, stored: StoredPlan, settings: OperatorSettings, *, store_key: str) -> str:
    """A digest for people and for the status. store_key: which store its members load from."""
    members = ring(pipe, stored.plan, 0)
    return digest([member_inputs(pipe, stored, each, settings, store_key=store_key) for each in members])


def runs_revision(
    snapshot: Snapshot,
    stored: StoredPlan,
    settings: OperatorSettings,
    replica: int,
    *,
    store_key: str,
    as_applied: bool = False,
) -> bool:
    """Whether every Deployment that this replica has is one of the revision. One that is missing is made again, and one
    whose annotation was taken away is repaired: neither makes another revision of it. as_applied: whether each is
    one of the plan, whatever else shapes its pods.
    """
    pipe = snapshot.pipe
    for live in deployments_of(snapshot.children, replica):
        identity = identity_of(live, pipe)
        if identity is None or name_of(live) != names.member(identity, stored.plan.hash):
            return False
        if identity.index > len(stored.plan.stages):
            return False
        if as_applied:
            continue
        if inputs_of(live) not in (None, member_inputs(pipe, stored, identity, settings, store_key=store_key)):
            return False
    return True
