"""An older CRD is told by what it lacks: fields, which it would drop in silence, and values, which it would refuse."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import yaml
from languagepipes_api.status import Phase
from languagepipes_operator.kube.crd_check import missing_fields
from support.paths import CRD


@pytest.fixture
def served() -> dict[str, Any]:
    schema: dict[str, Any] = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_the_crd_of_this_version_lacks_nothing(served: dict[str, Any]) -> None:
    assert missing_fields(served) == []


def test_a_field_is_named_and_what_is_below_it_is_not(served: dict[str, Any]) -> None:
    del served["properties"]["spec"]["properties"]["cache"]

    assert missing_fields(served) == ["spec.cache"]


def test_a_value_that_a_field_may_not_have_yet_is_named_with_the_field(served: dict[str, Any]) -> None:
    """CRDs of earlier versions have the words of `phase` as an enum."""
    known = [word for word in get_args(Phase) if word != "Paused"]
    served["properties"]["status"]["properties"]["phase"]["enum"] = known

    assert missing_fields(served) == ["status.phase: Paused"]
