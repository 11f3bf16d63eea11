"""Whole plans: what a spec and a model come to, on machines known or unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import Plan
from languagepipes_operator.planning import Node, PlanError, plan
from languagepipes_operator.planning.memory import CPU_KV_FRACTION, TRANSFORMERS_BYTES, USABLE_FRACTION, Sizes
from support.planned_models import GIB, MOE, QWEN3_06B, QWEN3_8B, SMOLLM2, dense, facts, spec


def box(memory: int, *gpus: int) -> tuple[Node, ...]:
    return (Node("box", memory * GIB, tuple(gpu * GIB for gpu in gpus)),)


def shape(planned: Plan) -> str:
    """A plan in one line: the End Model's layers, the stages', KV, and who is slowest."""
    end = planned.end_model
    stages = " ".join(f"{stage.name}={stage.layers}/{stage.device}" for stage in planned.stages)
    return (
        f"{end.local_layers}+{end.tail_layers} | {stages} | {planned.max_sequences} sequences by "
        f"{planned.kv_limited_by} | slowest {planned.slowest_station}"
    )


GPU_8 = {"name": "gpu", "device": "GPU", "memory": "8Gi"}
TABLE: list[tuple[str, ModelFacts, Any, dict[str, Any], tuple[Node, ...], str]] = [
    (
        "a count, even", SMOLLM2, 3, {"end": {"localLayers": 3}}, box(24),
        "0-2+none | stage-1=3-11/CPU stage-2=12-20/CPU stage-3=21-29/CPU | 16 sequences by requests | slowest "
        "end-model",
    ),
    (
        "a count, uneven", QWEN3_8B, 3, {}, box(64),
        "0-0+none | stage-1=1-12/CPU stage-2=13-24/CPU stage-3=25-35/CPU | 14 sequences by stage-1 | slowest stage-1",
    ),
    (
        "a large head makes the End Model slowest", QWEN3_06B, 3, {}, (),
        "0-0+none | stage-1=1-9/CPU stage-2=10-18/CPU stage-3=19-27/CPU | 16 sequences by requests | slowest end-model",
    ),
    (
        "one stage", SMOLLM2, 1, {}, box(8),
        "0-0+none | stage-1=1-29/CPU | 11 sequences by stage-1 | slowest stage-1",
    ),
    (
        "GPUs for a count", QWEN3_8B, {"count": 2, "device": "GPU"}, {}, box(64, 16, 16),
        "0-0+none | stage-1=1-18/GPU stage-2=19-35/GPU | 12 sequences by stage-1 | slowest end-model",
    ),
    (
        "a GPU's budget, a CPU takes the rest", QWEN3_8B, [GPU_8, {"name": "cpu"}],
        {"end": {"localLayers": 1, "tailLayers": 1}}, box(64, 16),
        "0-0+35-35 | gpu=1-17/GPU cpu=18-34/CPU | 1 sequences by gpu | slowest cpu",
    ),
    (
        "the rest in the middle", QWEN3_8B, [GPU_8, {"name": "cpu"}, {"name": "last", "layers": 4}], {}, (),
        "0-0+none | gpu=1-17/GPU cpu=18-31/CPU last=32-35/CPU | 1 sequences by gpu | slowest cpu",
    ),
    (
        "explicit layers", QWEN3_06B, [{"name": "a", "layers": 7}, {"name": "b", "layers": 20}], {}, (),
        "0-0+none | a=1-7/CPU b=8-27/CPU | 16 sequences by requests | slowest b",
    ),
    (
        "budgets beyond need are evened out", QWEN3_8B,
        [{"name": "a", "memory": "12Gi"}, {"name": "b", "memory": "12Gi"}],
        {}, box(64), "0-0+none | a=1-18/CPU b=19-35/CPU | 8 sequences by a | slowest a",
    ),
    (
        "a budget that holds all leaves a layer for the rest", QWEN3_06B,
        [{"name": "a", "memory": "99Gi"}, {"name": "b"}],
        {}, (), "0-0+none | a=1-26/CPU b=27-27/CPU | 16 sequences by requests | slowest a",
    ),
    (
        "experts are split by what is read", MOE, 4, {}, (),
        "0-0+none | stage-1=1-6/CPU stage-2=7-12/CPU stage-3=13-18/CPU stage-4=19-23/CPU | 16 sequences by requests | "
        "slowest end-model",
    ),
    (
        "few requests need little KV", QWEN3_06B, 3, {"server": {"maxConcurrentRequests": 2}}, (),
        "0-0+none | stage-1=1-9/CPU stage-2=10-18/CPU stage-3=19-27/CPU | 2 sequences by requests | slowest end-model",
    ),
    (
        "unlike layers", facts(
            [*dense(4, 10_000_000), *dense(4, 30_000_000)], hidden=64, vocabulary=100, heads=(4, 4, 16),
            intermediate=64, tied=True,
        ), 3, {}, (),
        "0-0+none | stage-1=1-4/CPU stage-2=5-6/CPU stage-3=7-7/CPU | 16 sequences by requests | slowest stage-1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "stages", "more", "nodes", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_spec_becomes_a_plan(
    model: ModelFacts, stages: Any, more: dict[str, Any], nodes: tuple[Node, ...], expected: str
) -> None:
    assert shape(plan(spec(stages, **more), model, nodes)) == expected


def test_sizes_are_counted_from_parameters() -> None:
    planned = plan(spec(3, model={"dtype": "float32", "maxContextLength": 128}), QWEN3_06B)

    stage, end = planned.stages[0], planned.end_model
    assert stage.weight_bytes == stage.step_bytes == 9 * 15_730_944 * 4
    # 16 sequences of 2 blocks of 64 tokens; keys and values of 8 heads of 128 in 9 layers
    assert planned.kv_blocks == 32
    assert stage.kv_bytes == 32 * 64 * (2 * 8 * 128) * 4 * 9
    head = 151_936 * 1024
    # tied: held once, read whole
    assert end.weight_bytes == end.step_bytes == (15_730_944 + head + 1024) * 4
    assert planned.frames_in_flight == 5


def test_untied_embeddings_are_held_twice_and_only_the_head_is_read() -> None:
    end = plan(spec(3), QWEN3_8B).end_model

    matrix = 151_936 * 4096
    assert end.weight_bytes == (192_946_432 + 2 * matrix + 4096) * 2
    assert end.step_bytes == (192_946_432 + matrix + 4096) * 2


def test_experts_are_held_whole_and_read_in_part() -> None:
    stage = plan(spec(4), MOE).stages[0]

    assert (stage.weight_bytes, stage.step_bytes) == (6 * 620_000_000 * 2, 6 * 57_000_000 * 2)


def test_members_have_memory_for_the_rows_of_each_expert() -> None:
    """On a CPU, where native steps bring them together; a GPU member's are counted in device memory, where none do."""
    stages = [{"name": "gpu", "device": "GPU", "memory": "60Gi"}, {"name": "cpu"}]
    without = plan(spec(stages), MOE)
    planned = plan(spec(stages), replace(MOE, experts_per_token=8, expert_intermediate_size=768))

    members = zip((without.end_model, *without.stages), (planned.end_model, *planned.stages), strict=True)
    rows = 512 * 8 * (2048 + 768) * 4
    assert [there.overhead_bytes - here.overhead_bytes for here, there in members] == [rows, 0, rows]


def test_facts_of_older_stores_say_nothing_of_experts() -> None:
    facts = replace(MOE, experts_per_token=8, expert_intermediate_size=768)
    assert ModelFacts.from_json(facts.to_json()) == facts

    older = {name: value for name, value in facts.to_json().items() if "expert" not in name}
    assert ModelFacts.from_json(older) == MOE


def test_the_reasons_name_the_head_the_experts_and_a_change_of_format() -> None:
    text = "\n".join(plan(spec(4, model={"dtype": "float16"}), MOE).reasons)

    assert "The End Model is the slowest member: it reads 669.8 MiB a step of 3.1 GiB in all, 593.5 MiB of it" in text
    assert "Mixture of experts: layers hold 26.6 GiB, a token reads 2.5 GiB" in text
    assert "Stored as bfloat16, served as float16; float16 ends at 65504" in text


def test_every_stage_says_why() -> None:
    stages = [GPU_8, {"name": "cpu"}, {"name": "last", "layers": 4}]

    assert [stage.reason for stage in plan(spec(stages), QWEN3_8B).stages] == [
        "17 layers of the budget of 8 GiB (7.8 GiB with KV for one sequence of 8192 tokens)",
        "takes the rest: 14 layers",
        "layers: 4, as asked",
    ]


def test_a_plan_survives_json() -> None:
    planned = plan(spec([GPU_8, {"name": "cpu"}]), QWEN3_8B)

    assert Plan.from_json(planned.to_json()) == planned


sizes_strategy = st.fixed_dictionaries(
    {"name": st.just("")},
    optional={"layers": st.integers(1, 12), "memory": st.sampled_from(["1200Mi", "2Gi", "4Gi", "9Gi"])},
).filter(lambda entry: not ("layers" in entry and "memory" in entry))


@settings(max_examples=200, deadline=None)
@given(
    entries=st.lists(sizes_strategy, min_size=1, max_size=5).filter(
        lambda entries: sum("layers" not in entry and "memory" not in entry for entry in entries) <= 1
    ),
    local=st.integers(1, 4),
    tail=st.integers(0, 4),
    context=st.sampled_from([16, 63, 64, 65, 2048]),
    memory=st.none() | st.integers(2, 64),
    model=st.sampled_from([SMOLLM2, QWEN3_06B, MOE]),
)
def test_a_plan_covers_every_layer_once_and_keeps_every_budget(
    entries: list[Any], local: int, tail: int, context: int, memory: int | None, model: ModelFacts
) -> None:
    stages = [{**entry, "name": f"s{place}"} for place, entry in enumerate(entries)]
    asked = spec(stages, model={"maxContextLength": context}, end={"localLayers": local, "tailLayers": tail})
    nodes = () if memory is None else box(memory)
    try:
        planned = plan(asked, model, nodes)
    except PlanError:
        return  # what is said then is the refusals' test

    ranges = [
        planned.end_model.local_layers,
        *(stage.layers for stage in planned.stages),
        planned.end_model.tail_layers,
    ]
    assert [layer for layers in ranges for layer in range(layers.start, layers.stop)] == list(range(model.layer_count))
    assert planned.max_sequences >= 1
    assert planned.kv_blocks * 64 >= context
    for entry, stage in zip(stages, planned.stages, strict=True):
        assert len(stage.layers) == entry.get("layers", len(stage.layers))
        if stage.memory_budget_bytes is not None:
            assert stage.weight_bytes + stage.kv_bytes + stage.overhead_bytes <= stage.memory_budget_bytes
    if nodes:
        members = [planned.end_model, *planned.stages]
        whole = sum(member.weight_bytes + member.kv_bytes + member.overhead_bytes for member in members)
        assert whole <= nodes[0].memory_bytes * USABLE_FRACTION["CPU"]
        one = Sizes(model, "bfloat16", context, ring_members=len(members)).kv_sequence_bytes(model.layer_count)
        kv = sum(member.kv_bytes for member in members)
        assert kv <= max(nodes[0].memory_bytes * CPU_KV_FRACTION, one)


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2"])
def test_members_that_import_transformers_get_main_memory_for_it(family: str) -> None:
    """A GPU member's main memory is a constant, with room for it."""
    stages = [{"name": "gpu", "device": "GPU", "memory": "8Gi"}, {"name": "cpu"}]

    native = plan(spec(stages), QWEN3_06B, ())
    planned = plan(spec(stages), replace(QWEN3_06B, family=family), ())

    members = zip((native.end_model, *native.stages), (planned.end_model, *planned.stages), strict=True)
    more = [there.overhead_bytes - here.overhead_bytes for here, there in members]
    assert more == [TRANSFORMERS_BYTES, 0, TRANSFORMERS_BYTES]


# A plan is kept


@pytest.mark.parametrize("stages", [3, [GPU_8, {"name": "cpu"}], [{"name": "a", "layers": 35}]])
def test_a_plan_is_kept_while_it_satisfies_the_spec_whatever_the_nodes_do(stages: Any) -> None:
    current = plan(spec(stages), QWEN3_8B, box(256, 80))

    assert plan(spec(stages), QWEN3_8B, box(1), current) is current
    assert plan(spec(stages), QWEN3_8B, (), current) is current
    served = spec(stages, model={"servedName": "x"}, server={"maxConcurrentRequests": 3})
    assert plan(served, QWEN3_8B, (), current) is current


@pytest.mark.parametrize(
    ("stages", "more"),
    [
        (4, {}),
        ({"count": 3, "device": "GPU"}, {}),
        ([{"name": "stage-1"}], {}),
        ([{"name": "stage-1", "memory": "99Gi"}, {"name": "stage-2"}, {"name": "stage-3", "layers": 1}], {}),
        (3, {"model": {"dtype": "float32"}}),
        (3, {"model": {"maxContextLength": 4096}}),
        (3, {"end": {"localLayers": 2}}),
        (3, {"end": {"tailLayers": 1}}),
        (3, {"end": {"device": "GPU"}}),
    ],
)
def test_a_plan_is_made_again_when_a_field_that_matters_changes(stages: Any, more: dict[str, Any]) -> None:
    current = plan(spec(3), QWEN3_8B)

    assert plan(spec(stages, **more), QWEN3_8B, (), current) == plan(spec(stages, **more), QWEN3_8B)


def test_a_plan_is_made_again_for_another_revision() -> None:
    current = plan(spec(3), QWEN3_8B)
    other = ModelFacts.from_json({**QWEN3_8B.to_json(), "revision": "beef"})

    assert plan(spec(3), other, (), current).model_revision == "beef"
