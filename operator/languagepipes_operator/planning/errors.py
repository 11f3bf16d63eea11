"""Why there is no plan.

PlanError       the spec cannot be served with this model on these nodes
"""

from __future__ import annotations


class PlanError(Exception):
    """reason: one CamelCase word, for conditions and events; the message has the numbers and the remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


# Reasons of a spec that other nodes could serve, or the same with more free.
SHORTAGES = frozenset(
    {"InsufficientMemory", "InsufficientGPUs", "InsufficientCPU", "NoSuchDevice", "NoEligibleNode", "StageTooLarge"}
)
