"""What no ring can beat is the slower of memory and arithmetic, and the way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bounds import (
    MachineLimits,
    ModelCost,
    decode_tokens_per_second,
    far_decode_tokens_per_second,
    first_token_seconds,
    model_cost,
    step_seconds,
)
from benchmarks.models import BenchmarkModel

# 1 GB/s and 1 GFLOP/s; a step reads 1 MB and multiplies by half a million weights.
LIMITS = MachineLimits(read_bytes_per_second=1e9, flops={"float32": 0.5e9, "bfloat16": 1e9})
COST = ModelCost(
    step_bytes=1_000_000, layer_parameters=400_000, head_parameters=100_000, kv_bytes_per_token=1000, query_width=250
)


def test_one_stream_is_bound_by_memory_and_many_by_arithmetic() -> None:
    one = step_seconds(COST, LIMITS, tokens=1, rows=1, context_tokens=0)
    many = step_seconds(COST, LIMITS, tokens=16, rows=16, context_tokens=0)

    assert one == pytest.approx(1e-3)  # 1 MB; its 500,000 weights take 1 ms of arithmetic too
    assert many == pytest.approx(16e-3)


def test_a_long_context_is_read_and_attended_to() -> None:
    read = step_seconds(COST, LIMITS, tokens=1, rows=1, context_tokens=9000)
    attended = step_seconds(COST, LIMITS, tokens=1, rows=1, context_tokens=9000, attended=90_000)

    assert read == pytest.approx(10e-3)  # 1 MB of weights and 9 MB of KV
    assert attended == pytest.approx(1e-3 + 4 * 250 * 90_000 / 1e9)


def test_the_way_round_counts_once_for_every_member() -> None:
    rate = decode_tokens_per_second(COST, LIMITS, streams=1, context_tokens=0, members=3, hop_seconds=1e-3)

    assert rate == pytest.approx(1 / 4e-3)


def test_a_prompt_attends_to_half_of_its_square() -> None:
    seconds = first_token_seconds(COST, LIMITS, prompt_tokens=1000, members=3, hop_seconds=1e-3)

    products = 2 * (400_000 * 1000 + 100_000)
    attention = 4 * 250 * (1000 * 1001 / 2)
    assert seconds == pytest.approx((products + attention) / 1e9 + 3e-3)


def test_added_latency_bounds_one_stream_and_leaves_many_to_compute_meanwhile() -> None:
    def rate(streams: int, added: float) -> float:
        return far_decode_tokens_per_second(
            COST, LIMITS, streams=streams, context_tokens=0, members=3, hop_seconds=0.0, added_seconds=added
        )

    assert rate(1, 0.0) == pytest.approx(1000)
    assert rate(1, 3e-3) == pytest.approx(1 / 10e-3)
    assert rate(16, 0.0) == pytest.approx(1000)  # 16 ms of arithmetic for 16 tokens
    assert rate(16, 3e-3) == pytest.approx(1000)  # in the 9 ms on the way, others compute
    assert rate(16, 10e-3) == pytest.approx(16 / 31e-3)


def test_a_models_cost_is_counted_from_its_plan_and_configuration(tmp_path: Path) -> None:
    shape = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 10,
        "hidden_size": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    plan = {"end_model": {"step_bytes": 1000}, "stages": [{"step_bytes": 2000}, {"step_bytes": 3000}]}

    cost = model_cost(plan, BenchmarkModel("tiny", "Tiny", tmp_path))

    assert cost == ModelCost(
        step_bytes=6000, layer_parameters=2680, head_parameters=320, kv_bytes_per_token=128, query_width=64
    )
