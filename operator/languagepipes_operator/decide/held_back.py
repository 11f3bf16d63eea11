"""What a paused pipe's spec would change: the decision that would be carried out, beside what there is. Pure."""

from __future__ import annotations

from languagepipes_operator.decide.decision import Decision
from languagepipes_operator.decide.idle import is_idle
from languagepipes_operator.observe.ownership import identity_of
from languagepipes_operator.observe.snapshot import Snapshot


def held_back(snapshot: Snapshot, unpaused: Decision) -> tuple[str, ...]:
    """In short sentences; () where what runs is what the spec asks for. unpaused: the decision without the pause."""
    live = snapshot.children.deployments
    found = ["a new plan is made"] if unpaused.plan_is_new else []
    if unpaused.store.last_applied is None:
        which = "another weights store" if unpaused.other_stores else "the weights store"
        found.append(f"{which} is {'changed' if unpaused.store.name in live else 'created'}")
    created = sum(each.name not in live for each in unpaused.members)
    changed = sum(each.name in live and each.last_applied is None for each in unpaused.members)
    removed = 0
    if unpaused.plan is not None or unpaused.running is not None:
        going = set(() if unpaused.rollout is None else unpaused.rollout.draining)
        stay = {each.name for each in unpaused.members if each.identity.replica not in going} | unpaused.left_alone
        removed = sum(name not in stay and identity_of(item, snapshot.pipe) is not None for name, item in live.items())
    if unpaused.rollout is not None and is_idle(snapshot, unpaused.rollout):
        found.append("stages are started once a request waits")
    for count, what in ((created, "created"), (changed, "changed"), (removed, "removed")):
        if count:
            found.append(f"{count} {'member is' if count == 1 else 'members are'} {what}")
    return tuple(found)
