"""A plan comes back from its ConfigMap as it went in."""

from __future__ import annotations

import pytest
from languagepipes_operator.observe.stored_plans import stored_plan
from support.example_pipes import (
    of_kind,
    pipe_snapshot,
    rendered,
    stored_plan_of,
)


def test_the_plan_comes_back_from_its_config_map_as_it_went_in() -> None:
    snapshot = pipe_snapshot()
    stored = stored_plan_of(snapshot)

    (config_map,) = of_kind(rendered(snapshot, stored), "ConfigMap")

    assert stored_plan(config_map) == stored


@pytest.mark.parametrize("spoil", [{}, {"plan.json": "{}"}, {"plan.json": "nothing"}])
def test_a_config_map_without_a_plan_keeps_none(spoil: dict[str, str]) -> None:
    (config_map,) = of_kind(rendered(pipe_snapshot()), "ConfigMap")

    assert stored_plan({**config_map, "data": spoil and {**config_map["data"], **spoil}}) is None
