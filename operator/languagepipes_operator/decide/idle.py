"""Idle to zero: the only replica's stages are stopped while nobody asks, and its End Model stays. Pure.

That a replica is idle is seen by its stages' Deployments, which have no replicas. Its End Model was told that they may
be away (`spec.autoscaling.minReplicas: 0` is part of the revision), so requests wait there however long that was.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from languagepipes_operator.decide.replicas import (
    existing,
    may_be_without_stages,
    ready_since,
    stages_are_stopped,
    stages_since,
)
from languagepipes_operator.decide.rollout import MIN_READY, Rollout
from languagepipes_operator.observe.snapshot import Snapshot


def is_idle(snapshot: Snapshot, rollout: Rollout) -> bool:
    """Whether its stages are stopped because nobody asks."""
    replica = _only_one(snapshot, rollout)
    return replica is not None and stages_are_stopped(snapshot.children, replica)


def is_to_idle(snapshot: Snapshot, rollout: Rollout) -> bool:
    """Whether nobody asks, and the only replica has been ready: one that never was is not hidden behind that."""
    due = idle_from(snapshot, rollout)
    return due is not None and due <= snapshot.now


def idle_from(snapshot: Snapshot, rollout: Rollout) -> datetime | None:
    """From when on its stages may be stopped, if nobody asks until then; None if they may not: one that has to be
    replaced is woken (`woken_until`).
    """
    replica = _only_one(snapshot, rollout)
    if replica is None or rollout.leaving:
        return None
    if stages_are_stopped(snapshot.children, replica):
        return snapshot.now
    since = ready_since(snapshot.children, replica)
    return None if since is None else since + MIN_READY


def woken_until(snapshot: Snapshot) -> datetime | None:
    """Where the only replica is idle, or was, and is to be replaced or to get others beside it: until when its stages
    are waited for first.

    The Service leads to no End Model that is not ready once there are two, so the old one is made ready first. If that
    takes longer than requests wait, it is not waited for.
    """
    children, numbers = snapshot.children, existing(snapshot.children)
    if len(numbers) != 1 or not may_be_without_stages(children, numbers[0]):
        return None
    replica = numbers[0]
    patience = timedelta(seconds=snapshot.pipe.spec.recovery.max_wait_seconds)
    if stages_are_stopped(children, replica):
        return snapshot.now + patience
    if ready_since(children, replica) is not None:
        return None
    until = stages_since(children, replica, snapshot.now) + patience
    return until if until > snapshot.now else None


def _only_one(snapshot: Snapshot, rollout: Rollout) -> int | None:
    """The only replica of a pipe that nobody asks, if it may be without stages."""
    if snapshot.desired != 0 or len(rollout.updated) != 1 or existing(snapshot.children) != rollout.updated:
        return None
    replica = rollout.updated[0]
    return replica if may_be_without_stages(snapshot.children, replica) else None
