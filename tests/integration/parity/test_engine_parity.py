"""Real layers behind the engine: greedy tokens equal transformers' `generate`, whatever the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from languagepipes_api.plan import LayerRange
from languagepipes_node import metrics
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.requests import PromptScores, SamplingParameters, Submission
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.stack import LayerStack
from support.loopback_ring import LoopbackRing
from support.models import ModelNamed, ParityModel
from support.toy_engine import GREEDY, Client, make_plan, preemptions


@pytest.fixture(scope="module", params=["llama tied, one kv head", "qwen3 sliding from layer 3"])
def model(request: pytest.FixtureRequest, model_named: ModelNamed) -> ParityModel:
    return model_named(request.param)


@dataclass
class Run:
    engine: Engine
    client: Client
    ring: LoopbackRing

    def submit(
        self, request: int, prompt: list[int], tokens: int, sampling: SamplingParameters = GREEDY, **fields: Any
    ) -> None:
        self.engine.submit(Submission(request, tuple(prompt), tokens, sampling, **fields))

    def until(self, requests: int) -> None:
        for _ in range(20_000):
            if all(self.client.finish(request) for request in range(requests)):
                return
            self.engine.step()
        raise AssertionError(f"not done: {self.engine.status}")


@pytest.fixture
def start(model: ParityModel) -> Iterator[Any]:
    rings: list[LoopbackRing] = []

    def make(*, tail: int = 0, settings: EngineSettings | None = None, **shape: int) -> Run:
        architecture = model.architecture
        stages = architecture.layer_count - 1 - tail
        plan = make_plan(stages=stages, tail=tail, hidden_size=architecture.hidden_size, **shape)  # type: ignore[arg-type]
        options: dict[str, Any] = {
            "dtype": torch.float32,
            "device": torch.device("cpu"),
            "block_tokens": plan.kv_block_tokens,
            "blocks": plan.kv_blocks,
        }
        end = EndLayers(architecture, plan.end_model.local_layers, plan.end_model.tail_layers, **options)
        end.load(model.source, lambda done: None)
        stacks = []
        for stage in plan.stages:
            stacks.append(LayerStack(architecture, LayerRange(stage.layers.start, stage.layers.stop), **options))
            stacks[-1].load(model.source, lambda done: None)
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


@pytest.mark.parametrize("tail", [0, 1])
def test_staggered_prompts_around_block_and_chunk_edges_equal_generate(
    model: ParityModel, start: Any, tail: int
) -> None:
    run = start(tail=tail, blocks=200, block_tokens=8, context=128, frame_tokens=32, frames_in_flight=4)
    lengths = [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 90]
    for request, length in enumerate(lengths):
        run.submit(request, model.prompt(length), 6 + request)
        if request % 3 == 0:
            run.engine.step()
    run.until(len(lengths))
    for request, length in enumerate(lengths):
        assert run.client.tokens(request) == model.generate(model.prompt(length), 6 + request), length


@pytest.mark.parametrize("wrong", [-1, "rows", 2**40])
def test_a_token_id_beyond_the_embedding_fails_its_own_request(
    model: ParityModel, start: Any, wrong: int | str
) -> None:
    run = start(blocks=64)
    run.submit(0, [3, model.vocabulary if wrong == "rows" else int(wrong)], 5)
    run.until(1)
    assert run.client.finish(0) == "internal"
    run.submit(1, model.prompt(9), 5)
    run.until(2)
    assert run.client.tokens(1) == model.generate(model.prompt(9), 5)


def test_preempted_sequences_equal_generate(model: ParityModel, start: Any) -> None:
    run = start(blocks=14, block_tokens=4, context=56, frame_tokens=16)
    before = preemptions()
    for request in range(5):
        run.submit(request, model.prompt(6 + request), 30)
    run.until(5)
    assert preemptions() > before
    for request in range(5):
        assert run.client.tokens(request) == model.generate(model.prompt(6 + request), 30)
    assert run.engine._sequences.blocks.used == 0


def test_one_micro_batch_with_shared_cores_equals_generate(model: ParityModel, start: Any) -> None:
    run = start(blocks=64, settings=EngineSettings(shared_cores=True, idle_seconds=0.01))
    for request in range(4):
        run.submit(request, model.prompt(10 * request + 3), 10)
    run.until(4)
    for request in range(4):
        assert run.client.tokens(request) == model.generate(model.prompt(10 * request + 3), 10)


@pytest.mark.parametrize("tail", [0, 1])
def test_prompts_log_probabilities_are_those_of_the_unsplit_model(model: ParityModel, start: Any, tail: int) -> None:
    run = start(tail=tail, blocks=200, block_tokens=8, context=128, frame_tokens=32)
    lengths = [2, 31, 32, 33, 90]
    for request, length in enumerate(lengths):
        run.submit(request, model.prompt(length), 2, prompt_logprobs=0)
    run.until(len(lengths))
    for request, length in enumerate(lengths):
        parts = [part for part in run.client.outputs[request] if isinstance(part, PromptScores)]
        seen = [token.logprob for part in parts for token in part.logprobs]
        prompt = model.prompt(length)
        expected = torch.log_softmax(model.logits(prompt), dim=1)[range(length - 1), prompt[1:]]
        assert seen == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_repetition_penalty_gives_the_tokens_of_generate(model: ParityModel, start: Any) -> None:
    run = start(blocks=64)
    prompt = model.prompt(30)
    run.submit(0, prompt, 20, replace(GREEDY, repetition_penalty=1.4))
    run.until(1)
    answer = model.oracle.generate(
        torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False, repetition_penalty=1.4
    )
    assert run.client.tokens(0) == answer[0, len(prompt) :].tolist()


@pytest.mark.parametrize("tail", [0, 1])
def test_with_drafts_greedy_and_sampled_answers_are_what_they_are_without(
    model: ParityModel, start: Any, tail: int
) -> None:
    """Prompts of one chunk and of several, which begin in turn; of the sampled ones, half draw from few tokens, so that
    some drafts are right and some are not."""
    few = tuple((token, 20.0) for token in (5, 6, 7))
    asked = [
        (length, GREEDY if length % 3 == 0 else SamplingParameters(seed=length, logit_bias=few if length % 2 else ()))
        for length in (3, 8, 15, 16, 17, 33, 64, 65)
    ]
    runs = []
    before = metrics.ACCEPTED_TOKENS._value.get()
    for speculation in ("none", "ngram"):
        settings = EngineSettings(speculation=speculation, shared_cores=True, idle_seconds=0.01)  # type: ignore[arg-type]
        run = start(tail=tail, blocks=200, block_tokens=8, context=128, frame_tokens=32, settings=settings)
        runs.append(run)
        for request, (length, sampling) in enumerate(asked):
            run.submit(request, model.prompt(length), 40, sampling)
            if request % 3 == 0:
                run.engine.step()
        run.until(len(asked))
    plain, drafting = runs
    for request, (length, sampling) in enumerate(asked):
        assert drafting.client.tokens(request) == plain.client.tokens(request), (length, sampling)
        if sampling is GREEDY:
            assert drafting.client.tokens(request) == model.generate(model.prompt(length), 40)
    assert metrics.ACCEPTED_TOKENS._value.get() > before
