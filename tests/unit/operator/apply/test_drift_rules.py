"""What counts as drift, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from languagepipes_operator.apply.drift import differences

DEPLOYMENT: dict[str, Any] = {
    "metadata": {"name": "a", "labels": {"ours": "1"}},
    "spec": {
        "replicas": 1,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "node",
                        "env": [{"name": "A", "value": "1"}],
                        "resources": {"limits": {"cpu": "0.5", "memory": "1Gi"}},
                        "command": ["languagepipes-node"],
                        "ports": [{"containerPort": 9090}],
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    },
}


def _live(**changes: Any) -> dict[str, Any]:
    container = {
        "name": "node",
        "env": [{"name": "INJECTED", "value": "x"}, {"name": "A", "value": "1"}],
        "resources": {"limits": {"cpu": "500m", "memory": "1073741824"}},
        "command": ["languagepipes-node"],
        "ports": [{"containerPort": 9090, "protocol": "TCP"}],
        "terminationMessagePath": "/dev/termination-log",
        **changes,
    }
    template = {"containers": [{"name": "sidecar"}, container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    metadata = {"name": "a", "labels": {"ours": "1", "theirs": "2"}, "uid": "u"}
    return {"metadata": metadata, "spec": {"replicas": 1, "template": {"spec": template}}, "status": {}}


def test_defaults_additions_and_other_spellings_of_a_quantity_are_no_drift() -> None:
    assert differences(DEPLOYMENT, _live()) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"command": ["sh"]}, "command"),
        ({"command": ["languagepipes-node", "more"]}, "command"),
        ({"env": []}, "env[A]"),
        ({"env": [{"name": "A", "value": "2"}]}, "env[A].value"),
        ({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, "limits.cpu"),
        ({"ports": []}, "ports[9090/TCP]"),
    ],
)
def test_a_changed_or_missing_value_is_drift_and_named(changes: dict[str, Any], where: str) -> None:
    (found,) = differences(DEPLOYMENT, _live(**changes))
    assert where in found


def test_a_selector_is_compared_as_a_whole() -> None:
    service = {"spec": {"selector": {"a": "1"}}}
    assert differences(service, {"spec": {"selector": {"a": "1"}}}) == []
    assert differences(service, {"spec": {"selector": {"a": "1", "b": "2"}}}) == ["spec.selector"]


def test_an_empty_selector_that_was_narrowed_is_drift() -> None:
    assert differences({"spec": {"podSelector": {}}}, {"spec": {"podSelector": {"matchLabels": {"a": "1"}}}})


def test_a_policy_without_rules_is_not_one_with_a_rule() -> None:
    assert differences({"spec": {"ingress": []}}, {"spec": {}}) == []
    assert differences({"spec": {"ingress": []}}, {"spec": {"ingress": [{}]}}) == ["spec.ingress"]


def test_a_lost_label_or_owner_is_drift() -> None:
    owned = {"metadata": {"ownerReferences": [{"uid": "u", "controller": True}]}}
    assert differences(owned, {"metadata": {"ownerReferences": [{"uid": "v", "controller": True}]}})
    assert differences({"metadata": {"labels": {"a": "1"}}}, {"metadata": {}})
