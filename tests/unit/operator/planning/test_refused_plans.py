"""What a user reads when there is no plan: the numbers and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from languagepipes_api.facts import ModelFacts
from languagepipes_operator.planning import Node, PlanError, plan
from support.planned_models import GIB, QWEN3_06B, QWEN3_8B, SMOLLM2, dense, facts, spec

BOX_24 = (Node("box", 24 * GIB),)
TABLE: list[tuple[ModelFacts, Any, dict[str, Any], tuple[Node, ...], str, str]] = [
    (
        QWEN3_06B, [{"name": "a", "layers": 30}], {}, (), "TooManyLayersAssigned",
        "28 layers, 31 assigned (1 at the End Model, 30 in stages): name at most 27 in stages",
    ),
    (
        QWEN3_06B, [{"name": "a", "layers": 20}], {}, (), "TooFewLayersAssigned",
        "28 layers, 21 assigned (1 at the End Model, 20 in stages): name 27 in stages, or add a stage without layers "
        "and "
        "memory, which takes the rest",
    ),
    (
        QWEN3_06B, [{"name": "a", "layers": 27}, {"name": "b"}], {}, (), "TooManyLayersAssigned",
        "28 layers, at least 29 assigned (1 at the End Model, 27 in stages, 1 or more in b): name at most 26 in stages",
    ),
    (
        QWEN3_8B, [{"name": "a", "memory": "4Gi"}, {"name": "b", "memory": "3Gi"}, {"name": "c", "layers": 10}],
        {}, (),
        "BudgetsTooSmall",
        "36 layers, 11 assigned (1 at the End Model, 10 in stages), and the budgets do not hold the other 25 (a at "
        "most 7 "
        "in 4 GiB, b at most 5 in 3 GiB): raise memory, lower maxContextLength, or add a stage without layers and "
        "memory",
    ),
    (
        QWEN3_8B, [{"name": "gpu", "memory": "1Gi"}, {"name": "b"}], {}, (), "StageOverBudget",
        "stage gpu: 1 layer needs 1.3 GiB (weights 368 MiB, KV for one sequence of 8192 tokens 32 MiB, overhead 972 "
        "MiB), "
        "budget 1 GiB: raise its memory or lower maxContextLength",
    ),
    (
        facts(
            [*dense(2, 10), *dense(2, 10**9)], hidden=64, vocabulary=100, heads=(4, 4, 16), intermediate=64, tied=True
        ),
        [{"name": "a", "layers": 1}, {"name": "b", "memory": "2Gi"}, {"name": "c"}], {"end": {"localLayers": 1}}, (),
        "StageOverBudget",
        "stage b: 1 layer needs 2.7 GiB (weights 1.9 GiB, KV for one sequence of 8192 tokens 2 MiB, overhead 833.7 "
        "MiB), "
        "budget 2 GiB: raise its memory or lower maxContextLength",
    ),
    (
        QWEN3_8B, [{"name": "gpu", "device": "GPU", "layers": 20}, {"name": "cpu"}], {},
        (Node("box", 64 * GIB, (8 * GIB,)),), "StageTooLarge",
        "stage gpu: 20 layers need 8.9 GiB (weights and overhead 8.3 GiB, KV for one sequence 640 MiB), and the "
        "largest GPU "
        "memory is 8 GiB, 7.2 GiB of it usable: give it fewer layers, or use a shorter maxContextLength",
    ),
    (
        QWEN3_8B, 3, {}, BOX_24, "InsufficientMemory",
        "4 members on CPU need 20.2 GiB (weights and overhead 19.1 GiB, KV for one sequence 1.1 GiB), and box has 24 "
        "GiB, "
        "19.2 GiB of it usable: use fewer stages, a shorter maxContextLength, a smaller model or more memory",
    ),
    (
        QWEN3_06B, {"count": 1, "device": "GPU"}, {}, BOX_24, "NoSuchDevice",
        "stage stage-1 asks for a GPU, but none of box has one: set device to CPU",
    ),
    (
        QWEN3_06B, 1, {"end": {"device": "GPU"}}, BOX_24 * 2, "NoSuchDevice",
        "the End Model asks for a GPU, but none of 2 nodes has one: set device to CPU",
    ),
    (
        QWEN3_06B, 30, {}, (), "TooManyStages",
        "30 stages, but 28 layers less 1 at the End Model leave 27: use at most 27 stages",
    ),
    (
        QWEN3_06B, 1, {"end": {"localLayers": 20, "tailLayers": 8}}, (), "NoLayersForStages",
        "localLayers 20 + tailLayers 8 = 28 of 28 layers: none is left for the stages; their sum must be at most 27",
    ),
    (
        SMOLLM2, 3, {"model": {"maxContextLength": 8193}}, (), "ContextTooLong",
        "maxContextLength is 8193, and the model has 8192 positions: set spec.model.maxContextLength to at most 8192",
    ),
    (
        replace(SMOLLM2, max_position=2048), 3, {}, (), "ContextTooLong",
        "maxContextLength is 8192, its default, and the model has 2048 positions: set spec.model.maxContextLength to "
        "at most 2048",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "stages", "more", "nodes", "reason", "message"), TABLE, ids=[f"{row[4]} {row[1]}" for row in TABLE]
)
def test_a_plan_is_refused_with_numbers_and_a_remedy(
    model: ModelFacts, stages: Any, more: dict[str, Any], nodes: tuple[Node, ...], reason: str, message: str
) -> None:
    with pytest.raises(PlanError) as refused:
        plan(spec(stages, **more), model, nodes)

    assert (refused.value.reason, refused.value.message) == (reason, message)
