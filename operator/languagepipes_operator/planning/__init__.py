"""Planning, pure: (spec, model facts, observed nodes, current plan) → plan with reasons, or a refusal with
numbers.
"""

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.kubernetes_nodes import node_of
from languagepipes_operator.planning.nodes import Node, Taint
from languagepipes_operator.planning.plan import plan

__all__ = ["Node", "PlanError", "Taint", "node_of", "plan"]
