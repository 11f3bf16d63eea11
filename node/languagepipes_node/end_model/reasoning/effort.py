"""How much a model is to think, in the variables that its chat template reads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)

# Templates that read `reasoning_effort` know OpenAI's three first values.
_LEVELS: dict[Effort, str] = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
# Qwen 3, GLM, SmolLM3, Gemma 4; DeepSeek V3.1, Granite.
_SWITCHES = ("enable_thinking", "thinking")


def template_variables(effort: Effort, variables: Collection[str], *, thinks: bool) -> dict[str, str | bool] | None:
    """What the template is given for `effort`; None where it cannot be told. variables: those that it reads. thinks:
    its text speaks of thinking.
    """
    switch = next((name for name in _SWITCHES if name in variables), None)
    given: dict[str, str | bool] = {}
    if switch is not None:
        given[switch] = effort != "none"
    if "reasoning_effort" in variables and effort in _LEVELS:
        given["reasoning_effort"] = _LEVELS[effort]
    if given:
        return given
    return {} if effort == "none" and not thinks else None


def accepted(variables: Collection[str], *, thinks: bool) -> list[Effort]:
    """The values of `reasoning_effort` that are not refused."""
    return [effort for effort in EFFORTS if template_variables(effort, variables, thinks=thinks) is not None]
