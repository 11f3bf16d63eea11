"""What no ring on this machine can beat: the design's section 7, from measured bandwidth, arithmetic and hop cost.

A step must read every weight that it uses once, and each token's share of arithmetic must be done. All members share
this machine's memory and cores, so their compute times add up to that of the whole model and one micro-batch in flight
is as good as many: one stream decodes at 1 / (Σ c_s + S·h), B streams at B / (Σ c_s + S·h). On machines of their own
members would overlap; the table says so beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import ROOT, BenchmarkModel

_BUFFER_BYTES = 1 << 30  # far beyond any cache
_SQUARE = 2048


@dataclass(frozen=True)
class MachineLimits:
    """read_bytes_per_second: best of several reads of 1 GiB. flops: best matrix product, by dtype."""

    read_bytes_per_second: float
    flops: dict[str, float]

    @property
    def best_flops(self) -> float:
        return max(self.flops.values())


@dataclass(frozen=True)
class ModelCost:
    """What one step of a model must do. step_bytes: weights read (the embedding is not, the head is, even if tied).

    layer_parameters: active in every token's matrix products. head_parameters: only in those of rows that are sampled
    from. kv_bytes_per_token, query_width (heads times their width): of all layers.
    """

    step_bytes: int
    layer_parameters: int
    head_parameters: int
    kv_bytes_per_token: int
    query_width: int


def measure(threads: int) -> MachineLimits:
    """In a process of its own, so that its threads and its gigabyte are gone afterwards."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.bounds", str(threads)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return MachineLimits(**json.loads(result.stdout))


def model_cost(plan: dict[str, Any], model: BenchmarkModel, *, dtype_bytes: int = 2) -> ModelCost:
    """From what `languagepipes plan -o json` counts."""
    config = json.loads((model.directory / "config.json").read_text())
    step_bytes = plan["end_model"]["step_bytes"] + sum(stage["step_bytes"] for stage in plan["stages"])
    kv = 2 * config["num_key_value_heads"] * config["head_dim"] * config["num_hidden_layers"] * dtype_bytes
    head = config["vocab_size"] * config["hidden_size"]
    width = config["num_attention_heads"] * config["head_dim"] * config["num_hidden_layers"]
    return ModelCost(step_bytes, step_bytes // dtype_bytes - head, head, kv, width)


def step_seconds(
    cost: ModelCost, limits: MachineLimits, *, tokens: int, rows: int, context_tokens: int, attended: int = 0
) -> float:
    """Σ c_s for one step: `tokens` packed tokens, `rows` of them sampled from, `context_tokens` cached ones read.

    attended: pairs of a token and one that it attends to. Each is two multiplications and two additions (query by key,
    weight by value) for each number of the query.
    """
    read = (cost.step_bytes + cost.kv_bytes_per_token * context_tokens) / limits.read_bytes_per_second
    products = cost.layer_parameters * tokens + cost.head_parameters * rows
    return max(read, (2 * products + 4 * cost.query_width * attended) / limits.best_flops)


def decode_tokens_per_second(
    cost: ModelCost, limits: MachineLimits, *, streams: int, context_tokens: int, members: int, hop_seconds: float
) -> float:
    """B / (Σ c_s + S·h), each stream with `context_tokens` in its cache."""
    return streams / (_decode_seconds(cost, limits, streams, context_tokens) + members * hop_seconds)


def far_decode_tokens_per_second(
    cost: ModelCost,
    limits: MachineLimits,
    *,
    streams: int,
    context_tokens: int,
    members: int,
    hop_seconds: float,
    added_seconds: float,
) -> float:
    """The same with `added_seconds` on every hop, in which others compute: a stream gets a token at most once in
    c_1 + S·(h + d), and all of them together no more than B / c_B, with c_b the compute of a step of b streams.
    """
    alone = _decode_seconds(cost, limits, 1, context_tokens) + members * (hop_seconds + added_seconds)
    return streams / max(alone, _decode_seconds(cost, limits, streams, context_tokens))


def _decode_seconds(cost: ModelCost, limits: MachineLimits, streams: int, context_tokens: int) -> float:
    cached = streams * context_tokens
    return step_seconds(cost, limits, tokens=streams, rows=streams, context_tokens=cached, attended=cached)


def first_token_seconds(
    cost: ModelCost, limits: MachineLimits, *, prompt_tokens: int, members: int, hop_seconds: float
) -> float:
    """One pass of the whole prompt and its way round the ring."""
    pairs = prompt_tokens * (prompt_tokens + 1) // 2
    compute = step_seconds(cost, limits, tokens=prompt_tokens, rows=1, context_tokens=0, attended=pairs)
    return compute + members * hop_seconds


def plan_of(pipe_file: Path) -> dict[str, Any]:
    """The plan of a pipe's file, by the command that users have."""
    command = [str(Path(sys.executable).with_name("languagepipes")), "plan", str(pipe_file), "-o", "json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


def _measure_here(threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    buffer = torch.ones(_BUFFER_BYTES // 4, dtype=torch.float32)
    read = 0.0
    for _ in range(7):
        started = time.perf_counter()
        buffer.sum()
        read = max(read, _BUFFER_BYTES / (time.perf_counter() - started))
    del buffer
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        left = torch.randn(_SQUARE, _SQUARE).to(dtype)
        best = 0.0
        for repeat in range(5):
            started = time.perf_counter()
            torch.nn.functional.linear(left, left)
            seconds = time.perf_counter() - started
            best = max(best, 2 * _SQUARE**3 / seconds)
            if repeat and seconds > 1.0:
                break
        flops[str(dtype).removeprefix("torch.")] = best
    return {"read_bytes_per_second": read, "flops": flops}


if __name__ == "__main__":
    print(json.dumps(_measure_here(int(sys.argv[1]))))
