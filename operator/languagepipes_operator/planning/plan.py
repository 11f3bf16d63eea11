"""plan(spec, facts, nodes, current) → Plan."""

from __future__ import annotations

from collections.abc import Sequence

from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import Plan
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.planning.nodes import Node


def plan(spec: PipeSpec, facts: ModelFacts, nodes: Sequence[Node] = (), current: Plan | None = None) -> Plan:
    """Raises PlanError."""
    raise NotImplementedError
