"""Planning, pure: (spec, model facts, observed nodes, current plan) → plan with reasons, or a refusal with
numbers.
"""

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.plan import plan

__all__ = ["Node", "PlanError", "plan"]
