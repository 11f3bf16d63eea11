"""What the operator knows of one pipe at one moment, as a value: decided upon by `manifests`, `conditions` and
`reconcile`, made by `observe`. Pure data; this module reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from languagepipes_api.facts import ModelFacts
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.nodes import Node

Manifest = dict[str, Any]


@dataclass(frozen=True)
class StoreReport:
    """What the pipe's store said when last asked, over mTLS.

    facts: once it has them. phase: as /v1/progress spells it. reason and message: the source's error; final where
    `failed`, else the store tries again. answered: whether it answered this time; misses: how often not, in a row.
    """

    answered: bool
    facts: ModelFacts | None = None
    phase: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    reason: str = ""
    message: str = ""
    failed: bool = False
    misses: int = 0


@dataclass(frozen=True)
class StoredPlan:
    """A plan as its ConfigMap keeps it: with the facts it was made from and the image that its members run.

    inputs: hash of the spec's fields that matter to a plan; another hash asks for another plan. upgrade: the last
    request for the operator's node image (`labels.ANNOTATION_UPGRADE`) that was answered.
    """

    plan: Plan
    facts: ModelFacts
    node_image: str
    inputs: str
    upgrade: str = ""


@dataclass(frozen=True)
class Children:
    """Live objects whose controller is this pipe's UID, by name. `foreign`: objects that carry a name that a child
    needs and belong to somebody else, as "Kind/name": those are never touched.
    """

    deployments: Mapping[str, Manifest] = field(default_factory=dict)
    services: Mapping[str, Manifest] = field(default_factory=dict)
    secrets: Mapping[str, Manifest] = field(default_factory=dict)
    config_maps: Mapping[str, Manifest] = field(default_factory=dict)
    claims: Mapping[str, Manifest] = field(default_factory=dict)
    budgets: Mapping[str, Manifest] = field(default_factory=dict)
    policies: Mapping[str, Manifest] = field(default_factory=dict)
    # Pods belong to ReplicaSets, not to the pipe: chosen by label and namespace.
    pods: Mapping[str, Manifest] = field(default_factory=dict)
    foreign: Mapping[str, Manifest] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Everything that one reconcile decides from.

    raw: the LanguagePipe as the API server gave it. nodes: None where nodes may not be read. events: the newest
    Warning events of pods and claims that are not well, by "Kind/name" ("Pod/qwen3-…", "PersistentVolumeClaim/…"),
    newest first. members: the /status of pods that were asked, by pod name.
    """

    pipe: LanguagePipe
    raw: Manifest
    children: Children
    now: datetime
    nodes: tuple[Node, ...] | None = None
    store: StoreReport | None = None
    members: Mapping[str, MemberStatus] = field(default_factory=dict)
    events: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])


@dataclass(frozen=True)
class Decision:
    """What one reconcile decided, for `conditions` to tell.

    plan: the plan in force for the spec as it stands, or None with `refusal` or while facts are awaited. conflicts:
    "Kind/name" of children that somebody else's object stands in the way of. denied: "Kind/name: words" for each child
    that the API server refuses as it stands (a quota, admission, a field that cannot be changed). denied_aside: the
    same of what no member needs to run.
    """

    plan: StoredPlan | None = None
    refusal: PlanError | None = None
    conflicts: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    non_blocking_errors: tuple[str, ...] = ()
    paused: bool = False
