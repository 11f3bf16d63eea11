"""Real layers behind the engine: greedy tokens equal transformers' `generate`, whatever the schedule."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from languagepipes_api.plan import LayerRange
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.requests import Submission
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.directory import SafetensorsDirectory
from support.loopback_ring import LoopbackRing
from support.toy_engine import GREEDY, Client, make_plan, preemptions

SHAPE: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    # Wide logits, so that rounding never decides between two tokens.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@dataclass
class Oracle:
    path: Path
    model: Any

    def generate(self, prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        output = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        return [int(token) for token in output[0, len(prompt) :]]


@pytest.fixture(scope="module", params=["llama", "qwen3 sliding"])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    import transformers

    if request.param == "llama":
        config = transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)
    else:
        config = transformers.Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=12, max_window_layers=2)
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return Oracle(path, model)


@dataclass
class Run:
    engine: Engine
    client: Client
    ring: LoopbackRing

    def submit(self, request: int, prompt: list[int], tokens: int) -> None:
        self.engine.submit(Submission(request, tuple(prompt), tokens, GREEDY))

    def until(self, requests: int) -> None:
        for _ in range(20_000):
            if all(self.client.finish(request) for request in range(requests)):
                return
            self.engine.step()
        raise AssertionError(f"not done: {self.engine.status}")


@pytest.fixture
def start(oracle: Oracle) -> Iterator[Any]:
    rings: list[LoopbackRing] = []

    def make(*, tail: int = 0, settings: EngineSettings | None = None, **shape: int) -> Run:
        plan = make_plan(stages=4 - tail, tail=tail, hidden_size=SHAPE["hidden_size"], **shape)  # type: ignore[arg-type]
        source = SafetensorsDirectory(oracle.path)
        architecture = Architecture.from_config(json.loads(source.file("config.json")))
        options: dict[str, Any] = {
            "dtype": torch.float32,
            "device": torch.device("cpu"),
            "block_tokens": plan.kv_block_tokens,
            "blocks": plan.kv_blocks,
        }
        end = EndLayers(architecture, plan.end_model.local_layers, plan.end_model.tail_layers, **options)
        end.load(source, lambda done: None)
        stacks = []
        for stage in plan.stages:
            stacks.append(LayerStack(architecture, LayerRange(stage.layers.start, stage.layers.stop), **options))
            stacks[-1].load(source, lambda done: None)
        ring = LoopbackRing(stacks, hidden_size=plan.hidden_size, dtype=torch.float32, tail_layers=tail > 0)
        rings.append(ring)
        client = Client()
        engine = Engine(
            end,
            ring,
            plan=plan,
            settings=settings or EngineSettings(idle_seconds=0.01),
            deliver=client.deliver,
        )
        engine.join_ring()
        return Run(engine, client, ring)

    yield make
    for ring in rings:
        ring.close()


def prompt_of(length: int) -> list[int]:
    return random.Random(length).choices(range(SHAPE["vocab_size"]), k=length)


@pytest.mark.parametrize("tail", [0, 1])
def test_staggered_prompts_around_block_and_chunk_edges_equal_generate(oracle: Oracle, start: Any, tail: int) -> None:
    run = start(tail=tail, blocks=200, block_tokens=8, context=128, frame_tokens=32, frames_in_flight=4)
    lengths = [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 90]
    for request, length in enumerate(lengths):
        run.submit(request, prompt_of(length), 6 + request)
        if request % 3 == 0:
            run.engine.step()
    run.until(len(lengths))
    for request, length in enumerate(lengths):
        assert run.client.tokens(request) == oracle.generate(prompt_of(length), 6 + request), length


def test_preempted_sequences_equal_generate(oracle: Oracle, start: Any) -> None:
    run = start(blocks=14, block_tokens=4, context=56, frame_tokens=16)
    before = preemptions()
    for request in range(5):
        run.submit(request, prompt_of(6 + request), 30)
    run.until(5)
    assert preemptions() > before
    for request in range(5):
        assert run.client.tokens(request) == oracle.generate(prompt_of(6 + request), 30)
    assert run.engine._sequence_table.blocks.used == 0


def test_one_micro_batch_with_shared_cores_equals_generate(oracle: Oracle, start: Any) -> None:
    run = start(blocks=64, settings=EngineSettings(shared_cores=True, idle_seconds=0.01))
    for request in range(4):
        run.submit(request, prompt_of(10 * request + 3), 10)
    run.until(4)
    for request in range(4):
        assert run.client.tokens(request) == oracle.generate(prompt_of(10 * request + 3), 10)
