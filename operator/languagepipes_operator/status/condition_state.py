"""One condition without its times, and how to find one in a status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class ConditionState:
    """One condition without its times."""

    status: Status
    reason: str
    message: str


def condition_in(status: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """That condition of a dumped status, or an empty mapping."""
    for condition in (status or {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}
