"""Who writes spec.replicas beside autoscaling is known by managedFields, also of what is kept of them."""

from __future__ import annotations

from typing import Any

import pytest
from languagepipes_operator.observe.scale_writes import UNKNOWN, scale_writer, trimmed_pipe


def entry(manager: str, time: str, *fields: str, subresource: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {
        "manager": manager,
        "operation": "Update",
        "time": f"2026-11-24T{time}Z",
        "fieldsV1": {"f:spec": {f"f:{name}": {} for name in fields}},
    }
    return {**found, "subresource": subresource} if subresource else found


USER = entry("kubectl", "10:00:00", "model", "autoscaling")


def test_a_value_that_nobody_owns_was_written_by_the_scale_subresource() -> None:
    def told(replicas: int, *entries: dict[str, Any]) -> str | None:
        return scale_writer({"metadata": {"managedFields": list(entries)}, "spec": {"replicas": replicas}})

    assert told(5, USER) == UNKNOWN
    assert told(1, USER) is None
    assert told(5, USER, entry("gitops", "09:00:00", "replicas")) is None


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([USER], None, id="nobody"),
        pytest.param([USER, entry("hpa", "10:00:01", "replicas", subresource="scale")], "hpa", id="after"),
        pytest.param([USER, entry("hpa", "09:59:59", "replicas", subresource="scale")], None, id="before"),
        pytest.param([USER, entry("gitops", "10:00:01", "replicas")], None, id="in the spec itself"),
        pytest.param([USER, entry("operator", "10:00:01", "x", subresource="status")], None, id="the status"),
    ],
)
def test_a_write_by_the_scale_subresource_after_autoscaling_was_set(entries: list[Any], expected: str | None) -> None:
    raw = {"metadata": {"name": "smol", "managedFields": entries}, "spec": {}}

    assert scale_writer(raw) == expected
    assert scale_writer(trimmed_pipe(raw)) == expected
    assert "f:model" not in str(trimmed_pipe(raw))
