"""Whose an object is: the controller's UID and kind decide, not names and labels."""

from __future__ import annotations

from typing import Any

import pytest
from languagepipes_operator.observe.ownership import owned_by, owner_reference
from support.example_pipes import pipe_snapshot


def owned(**changed: Any) -> dict[str, Any]:
    return {
        "kind": "Service",
        "metadata": {"name": "a", "ownerReferences": [owner_reference(pipe_snapshot()) | changed]},
    }


def test_a_child_is_owned_by_its_pipe() -> None:
    assert owned_by(owned(), pipe_snapshot().uid)


@pytest.mark.parametrize("changed", [{"uid": "another"}, {"kind": "Deployment"}, {"controller": False}])
def test_an_object_of_another_owner_is_not(changed: dict[str, Any]) -> None:
    assert not owned_by(owned(**changed), pipe_snapshot().uid)


def test_an_object_without_owner_is_not() -> None:
    assert not owned_by({"kind": "Service", "metadata": {"name": "a"}}, pipe_snapshot().uid)
