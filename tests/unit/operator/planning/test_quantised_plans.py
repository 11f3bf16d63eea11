"""Plans with quantised weights: their bytes, their hash, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from languagepipes_api.facts import ModelFacts, QuantisedFacts, QuantisedShare
from languagepipes_api.plan import Plan
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.inputs import plan_inputs
from languagepipes_operator.planning.plan import plan
from support.planned_models import dense, facts, spec

LAYERS, PARAMETERS, MATRICES = 6, 1_000_100, 1_000_000


def quantisable(**changes: Any) -> ModelFacts:
    sizes: dict[str, Any] = {"hidden": 64, "vocabulary": 512, "heads": (4, 2, 16), "intermediate": 128, "tied": True}
    plain = facts(dense(LAYERS, PARAMETERS), **sizes)
    layer = QuantisedShare(MATRICES, MATRICES * 5 // 8, MATRICES, MATRICES * 5 // 8)
    ends = plain.embedding_parameters
    end = QuantisedShare(ends, ends * 17 // 16, ends, ends * 17 // 16)
    quantised = {"int4": QuantisedFacts((layer,) * LAYERS, end, end, "A note of the store.")}
    return dataclasses.replace(plain, quantised=quantised, **changes)


def planned(mode: str, known: ModelFacts | None = None) -> Plan:
    return plan(spec(2, model={"quantization": mode}), known or quantisable())


def test_a_stage_takes_the_bytes_of_its_quantised_matrices_and_of_what_stays() -> None:
    made = planned("int4")
    for stage in made.stages:
        layers = len(stage.layers)
        assert stage.weight_bytes == layers * (MATRICES * 5 // 8 + 2 * (PARAMETERS - MATRICES))
        assert stage.step_bytes == stage.weight_bytes
        assert stage.weight_bytes <= 0.32 * 2 * layers * PARAMETERS
    assert any(
        "Quantised (int4): weights take" in reason and "A note of the store." in reason for reason in made.reasons
    )


def test_kv_and_the_wire_stay_as_they_are() -> None:
    with_and_without = [planned(mode) for mode in ("none", "int4")]
    assert len({(made.dtype, made.kv_block_tokens, made.stages[0].kv_bytes) for made in with_and_without}) == 1


def test_a_plan_without_quantisation_is_written_and_named_as_before() -> None:
    made = planned("none")
    assert "quantization" not in made.to_json()
    assert made.weights_revision == made.model_revision
    assert made.hash == dataclasses.replace(made, reasons=()).hash != planned("int4").hash
    assert plan_inputs(spec(2)) == plan_inputs(spec(2, model={"quantization": "none"}))
    assert plan_inputs(spec(2)) != plan_inputs(spec(2, model={"quantization": "int4"}))


def test_plans_and_facts_are_read_as_they_were_written() -> None:
    made = planned("int4")
    assert Plan.from_json(made.to_json()) == made
    assert made.weights_revision == f"{made.model_revision}+int4"
    known = quantisable()
    assert ModelFacts.from_json(known.to_json()) == known
    older = known.to_json()
    del older["quantised"]
    assert ModelFacts.from_json(older).quantised == {}


def test_another_mode_asks_for_another_plan() -> None:
    current = planned("none")
    again = plan(spec(2, model={"quantization": "int4"}), quantisable(), (), current)
    assert again.quantization == "int4"
    assert plan(spec(2, model={"quantization": "int4"}), quantisable(), (), again) is again


@pytest.mark.parametrize(
    ("mode", "family", "reason", "sentence"),
    [
        ("int4", "gemma3_text", "QuantizationUnsupported", "are transformers' own, which take no quantised weights"),
        ("asStored", "llama", "NothingQuantised", "set spec.model.quantization to int8, int4 or none"),
        ("int8", "llama", "QuantizationUnsupported", "no matrix of"),
    ],
)
def test_what_cannot_be_quantised_is_refused_with_the_remedy(
    mode: str, family: str, reason: str, sentence: str
) -> None:
    known = quantisable(family=family)
    if family == "gemma3_text":
        known = dataclasses.replace(known, quantised={})
    with pytest.raises(PlanError) as refused:
        planned(mode, known)
    assert refused.value.reason == reason
    assert sentence in str(refused.value)
    assert "set spec.model.quantization to" in str(refused.value)
