"""lm-evaluation-harness scores a task of ours over the server as it does with transformers on the same weights."""

from __future__ import annotations

import pytest
from support.scripted_engine import CONVERTED, smollm2_file


def test_a_task_scores_as_with_transformers_on_the_same_weights(evaluate):
    smollm2_file("config.json")  # converts the weights if they are not there

    results = evaluate(CONVERTED, "general_knowledge")

    reference = results.pop("transformers")
    assert 0.5 < reference["metrics"]["acc,none"] < 1
    assert results.keys() == {"server", "server, text"}
    for name, result in results.items():
        assert result["metrics"] == reference["metrics"], name
        assert len(result["scores"]) == 8 * 4
        for (score, greedy), (expected, expected_greedy) in zip(result["scores"], reference["scores"], strict=True):
            assert score == pytest.approx(expected, abs=2e-3), name
            assert greedy == expected_greedy, name
