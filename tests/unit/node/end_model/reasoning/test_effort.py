"""`reasoning_effort` in the variables that a template reads."""

from __future__ import annotations

import pytest
from languagepipes_node.end_model.reasoning.effort import EFFORTS, accepted, template_variables


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_a_switch_is_off_for_none_and_on_for_all_else(switch):
    for effort in EFFORTS:
        assert template_variables(effort, {switch, "messages"}, thinks=True) == {switch: effort != "none"}


def test_levels_that_templates_do_not_know_become_the_nearest():
    given = {effort: template_variables(effort, {"reasoning_effort"}, thinks=True) for effort in EFFORTS}
    levels = {effort: value and value["reasoning_effort"] for effort, value in given.items()}
    assert levels == {
        "none": None, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"
    }  # fmt: skip


def test_what_cannot_be_kept_is_not_accepted():
    assert accepted(set(), thinks=False) == ["none"]
    assert accepted(set(), thinks=True) == []
    assert accepted({"reasoning_effort"}, thinks=True) == [effort for effort in EFFORTS if effort != "none"]
    assert accepted({"reasoning_effort", "enable_thinking"}, thinks=True) == list(EFFORTS)
