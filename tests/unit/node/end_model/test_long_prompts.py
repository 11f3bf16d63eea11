"""A stream goes on while a long prompt is computed, and holds it up little: the scheduler in virtual time."""

from __future__ import annotations

import pytest

from benchmarks.chunk_budget import MODELS, MemberModel, trade_off


@pytest.mark.parametrize("shared_cores", [True, False], ids=["shared cores", "own cores"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_prompt_keeps_most_of_its_speed_and_the_stream_waits_at_most_four_steps(
    model: MemberModel, shared_cores: bool
) -> None:
    speed, longest_gap = trade_off(model, shared_cores=shared_cores)
    assert speed >= 0.7
    assert longest_gap <= 4
