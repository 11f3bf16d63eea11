"""Log probabilities of a prompt's tokens: those of the model alone, once each, whatever happens on the way."""

from __future__ import annotations

import random

import pytest
import torch
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.prompt_scores import score
from languagepipes_node.end_model.requests import Failure, PromptScores, TokenOutput
from languagepipes_node.wire.errors import RingDown
from support.toy_engine import VOCABULARY, MakeRig, Rig, ToyLayer, alone, preemptions


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(VOCABULARY), k=length)


def scores_of(rig: Rig, request: int) -> list[float]:
    """All parts, joined; they come in order, without a gap, and before the first token."""
    outputs = rig.client.outputs[request]
    parts = [output for output in outputs if isinstance(output, PromptScores)]
    assert outputs[: len(parts)] == parts
    found: list[float] = []
    for part in parts:
        assert part.first == len(found) + 1
        found += [token.logprob for token in part.logprobs]
    return found


def next_logprobs(make_rig: MakeRig, prompts: list[list[int]], *, tail: int = 0) -> list[dict[int, float]]:
    """What the model says of every token after each prompt, by asking for one token."""
    rig = make_rig(tail=tail, context=128, blocks=400, settings=EngineSettings(max_running=100))
    for request, prompt in enumerate(prompts):
        rig.submit(request, prompt, max_tokens=1, logprobs=VOCABULARY)
    rig.run()
    answers = [rig.client.outputs[request][0] for request in range(len(prompts))]
    return [dict(answer.logprobs.top) for answer in answers if isinstance(answer, TokenOutput) and answer.logprobs]


def expected_scores(make_rig: MakeRig, prompt: list[int], *, tail: int = 0) -> list[float]:
    after = next_logprobs(make_rig, [prompt[:end] for end in range(1, len(prompt))], tail=tail)
    return [logprobs[token] for logprobs, token in zip(after, prompt[1:], strict=True)]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("tail", [0, 2])
def test_scores_are_those_of_the_model_alone(make_rig: MakeRig, length: int, tail: int) -> None:
    prompt = prompt_of(length)
    rig = make_rig(tail=tail)
    rig.submit(1, prompt, max_tokens=4, prompt_logprobs=0)
    rig.run()
    assert scores_of(rig, 1) == pytest.approx(expected_scores(make_rig, prompt, tail=tail), abs=1e-4)
    assert rig.answer(1) == alone(prompt, 4, tail=tail)


def test_alternatives_are_the_likeliest_tokens_of_each_place(make_rig: MakeRig) -> None:
    prompt = prompt_of(9)
    rig = make_rig()
    rig.submit(1, prompt, max_tokens=1, prompt_logprobs=3)
    rig.run()
    expected = next_logprobs(make_rig, [prompt[:end] for end in range(1, len(prompt))])
    (part,) = [output for output in rig.client.outputs[1] if isinstance(output, PromptScores)]
    for token, all_of_them in zip(part.logprobs, expected, strict=True):
        likeliest = sorted(all_of_them.items(), key=lambda pair: -pair[1])[:3]
        assert [number for number, _ in token.top] == [number for number, _ in likeliest]
        assert token.rank == 1 + sum(value > token.logprob + 1e-3 for value in all_of_them.values())
        assert [value for _, value in token.top] == pytest.approx([value for _, value in likeliest], abs=1e-4)


def test_scored_and_plain_requests_share_frames(make_rig: MakeRig) -> None:
    rig = make_rig(threads=True, blocks=200)
    for request, length in enumerate([30, 4, 17, 9, 2, 40]):
        rig.submit(request, prompt_of(length, request), max_tokens=6, prompt_logprobs=1 if request % 2 else None)
    rig.run()
    for request, length in enumerate([30, 4, 17, 9, 2, 40]):
        prompt = prompt_of(length, request)
        assert rig.answer(request) == alone(prompt, 6)
        expected = expected_scores(make_rig, prompt) if request % 2 else []
        assert scores_of(rig, request) == pytest.approx(expected, abs=1e-4)


def test_sequences_that_are_computed_again_are_scored_once(make_rig: MakeRig) -> None:
    rig = make_rig(blocks=14, context=56)
    for request in range(4):
        rig.submit(request, prompt_of(6, request), max_tokens=26, prompt_logprobs=0)
    before = preemptions()
    rig.run()
    assert preemptions() > before
    for request in range(4):
        assert len(scores_of(rig, request)) == 5
        assert rig.answer(request) == alone(prompt_of(6, request), 26)


@pytest.mark.parametrize("lost", [(), (1,), (2,), (1, 2)])
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_lost_ring_costs_no_score_and_gives_none_twice(make_rig: MakeRig, lost: tuple[int, ...], frames: int) -> None:
    prompt = prompt_of(50)
    rig = make_rig(frame_tokens=8, context=96)
    rig.submit(1, prompt, max_tokens=3, prompt_logprobs=0)
    for _ in range(frames):
        with torch.inference_mode():
            rig.engine.step()
    rig.engine.dispatch()
    rig.ring.break_ring("a member was killed")
    rig.engine.lose_ring(RingDown("a member was killed", "lost"))
    for stage in lost:
        rig.layers[stage - 1] = ToyLayer(rig.plan.stages[stage - 1].layers.start, rig.plan)
        rig.ring.replace_stage(stage, rig.layers[stage - 1])
    rig.engine.join_ring()
    rig.run()
    assert scores_of(rig, 1) == pytest.approx(expected_scores(make_rig, prompt), abs=1e-4)
    assert rig.answer(1) == alone(prompt, 3)


def test_logits_of_long_prompts_are_computed_a_few_rows_at_a_time() -> None:
    seen: list[int] = []

    def logits_of(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return rows

    rows = torch.randn(1000, 50)
    tokens = [number % 50 for number in range(1000)]
    found = score(logits_of, rows, tokens, alternatives=0)
    assert found is not None
    assert max(seen) <= 32
    expected = torch.log_softmax(rows, 1)[range(1000), tokens].tolist()
    assert [token.logprob for token in found] == pytest.approx(expected, abs=1e-5)
    rows[500, 3] = torch.nan
    assert score(logits_of, rows, tokens, alternatives=0) is None


def test_a_prompt_whose_scores_are_not_finite_fails_alone(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.end.embedding[7] = torch.nan
    rig.submit(1, [1, 7, 2, 3], prompt_logprobs=0)
    rig.submit(2, [1, 2, 3], prompt_logprobs=0)
    rig.run()
    assert isinstance(rig.client.outputs[1][-1], Failure)
    assert len(scores_of(rig, 2)) == 2
