"""What the operator knows of one pipe at one moment, as a value. `observer` makes it; `decide`, `children` and `status`
read it. Pure data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from languagepipes_api.facts import ModelFacts
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.planning.nodes import Node, Taint


@dataclass(frozen=True)
class StoreReport:
    """A store's last answer, over mTLS.

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
class Children:
    """Live objects whose controller is this pipe's UID, by name. `foreign`: objects that carry a name that a child
    needs and belong to another owner, as "Kind/name": those are never touched.
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

    raw: the LanguagePipe as the API server gave it. nodes: as if the pipe had no pods; None where nodes may not be
    read, or where nothing depends on them. occupied_nodes: the same with the pipe's own pods on them. store: the last
    report of the store that is asked; store_key: which of the pipe's stores that is (`decide.stores`). events: the
    newest Warning events of pods and claims that are not well, by "Kind/name" ("Pod/qwen3-…",
    "PersistentVolumeClaim/…"), newest first. members: the /status of pods that were asked, by pod name. desired: how
    many replicas autoscaling asks for, 0 for one whose stages are stopped; None without autoscaling. load_unknown:
    whether there is an End Model that cannot be asked for its requests. emptied: nodes that are being emptied, with the
    taints that say so (`observe.drains`); None where nodes may not be read.
    """

    pipe: LanguagePipe
    raw: Manifest
    children: Children
    now: datetime
    nodes: tuple[Node, ...] | None = None
    occupied_nodes: tuple[Node, ...] | None = None
    store: StoreReport | None = None
    store_key: str = ""
    members: Mapping[str, MemberStatus] = field(default_factory=dict)
    events: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)
    desired: int | None = None
    load_unknown: bool = False
    emptied: Mapping[str, tuple[Taint, ...]] | None = None

    @property
    def replicas(self) -> int:
        """How many there are to be."""
        return self.pipe.spec.replicas if self.desired is None else max(1, self.desired)

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])
