"""With drafts an engine gives the answers that it gives without, in fewer frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from languagepipes_node import metrics
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.requests import (
    Cancellation,
    SamplingParameters,
    TokenOutput,
)
from languagepipes_node.model.buffers import bytes_of, tensor_from
from languagepipes_node.wire.errors import RingDown
from prometheus_client import Counter
from support.loopback_ring import LoopbackFrame
from support.toy_engine import HIDDEN, MakeRig, Rig, ToyLayer, alone, preemptions

REPEATING = [7, 8, 9, 10] * 4
DRAFTING = EngineSettings(speculation="ngram")
# Of these few tokens an answer at temperature 1 is made, so that some drafts are right and some are not.
FEW = tuple((token, 30.0) for token in (1, 2, 3))
MIXED: list[dict[str, Any]] = [
    {},
    {"sampling": SamplingParameters(seed=1, logit_bias=FEW)},
    {"sampling": SamplingParameters(seed=2, logit_bias=FEW, top_p=0.9), "logprobs": 2},
    {"sampling": SamplingParameters(seed=3, logit_bias=FEW, top_k=2, frequency_penalty=0.4, presence_penalty=0.2)},
    {"sampling": SamplingParameters(seed=4, logit_bias=FEW, repetition_penalty=1.3), "logprobs": 0},
    {"sampling": SamplingParameters(seed=5, logit_bias=FEW, min_p=0.1), "prompt_logprobs": 1},
    {
        "sampling": SamplingParameters(seed=6, logit_bias=((4, 30.0), (5, 30.0), (6, 30.0)), min_tokens=9),
        "stop_token_ids": frozenset({5}),
    },
    {"sampling": SamplingParameters(temperature=0.0, repetition_penalty=1.1), "logprobs": 1},
]


def count(counter: Counter) -> float:
    return counter._value.get()


def submit_all(rig: Rig, asked: list[dict[str, Any]] = MIXED) -> None:
    for request, fields in enumerate(asked):
        rig.submit(request, [*REPEATING, request], **{"max_tokens": 20 + request, **fields})


def answers(rig: Rig) -> dict[int, list[tuple[int, str | None]]]:
    """The tokens that clients got, and how they ended."""
    return {
        request: [(output.token, output.finish) for output in outputs if isinstance(output, TokenOutput)]
        for request, outputs in rig.client.outputs.items()
    }


def scores(rig: Rig) -> list[float]:
    """All log probabilities that clients got, by request."""
    return [
        value
        for request in sorted(rig.client.outputs)
        for output in rig.client.outputs[request]
        if isinstance(output, TokenOutput) and output.logprobs is not None
        for value in (output.logprobs.logprob, *(number for one in output.logprobs.top for number in one))
    ]


def decode_turns(rig: Rig) -> int:
    """How often a sequence of `submit_all` was in a frame after its prompt. How many are in one frame, and so how many
    frames there are, depends on how long steps took."""
    return sum(int((batch.starts > len(REPEATING)).sum()) for batch in rig.end.first.batches)


def assert_same(rig: Rig, plain: Rig) -> None:
    assert answers(rig) == answers(plain)
    assert scores(rig) == pytest.approx(scores(plain), abs=1e-4)


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("shared_cores", [True, False])
def test_greedy_and_sampled_answers_are_token_by_token_what_they_are_without(
    make_rig: MakeRig, tail: int, shared_cores: bool
) -> None:
    plain = make_rig(tail=tail, blocks=200, settings=EngineSettings(shared_cores=shared_cores))
    submit_all(plain)
    plain.run()
    before = count(metrics.DRAFTS), count(metrics.DRAFTED_TOKENS), count(metrics.ACCEPTED_TOKENS)
    drafting = make_rig(tail=tail, blocks=200, settings=EngineSettings(shared_cores=shared_cores, speculation="ngram"))
    submit_all(drafting)
    drafting.run()
    assert_same(drafting, plain)
    drafts, drafted, accepted = (
        count(counter) - was
        for counter, was in zip((metrics.DRAFTS, metrics.DRAFTED_TOKENS, metrics.ACCEPTED_TOKENS), before, strict=True)
    )
    assert 0 < accepted < drafted
    assert drafts <= drafted
    assert decode_turns(drafting) < decode_turns(plain)
    assert drafting.engine._sequences.blocks.used == 0


def test_a_repeating_answer_takes_fewer_frames_than_tokens(make_rig: MakeRig) -> None:
    rig = make_rig(settings=DRAFTING, block_tokens=16, context=128)
    rig.submit(1, REPEATING, max_tokens=80)
    rig.run()
    assert rig.answer(1) == alone(REPEATING, 80)
    assert rig.ring.frames_sent < 40


def test_frames_name_no_block_that_a_row_alone_would_not(make_rig: MakeRig) -> None:
    rig = make_rig(settings=DRAFTING)
    rig.submit(1, REPEATING, max_tokens=60)
    rig.run()
    batches = [batch for batch in rig.end.first.batches if batch.counts[0] > 1 and batch.starts[0] >= len(REPEATING)]
    assert batches
    for batch in batches:
        assert batch.runs[:, 1].sum() == -(-(batch.starts[0] + 1) // rig.plan.kv_block_tokens)


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("lost", [(), (1, 2)])
def test_a_ring_that_is_lost_with_drafts_in_flight_changes_no_answer(
    make_rig: MakeRig, lost: tuple[int, ...], tail: int
) -> None:
    plain = make_rig(tail=tail, blocks=200)
    submit_all(plain)
    plain.run()
    rig = make_rig(tail=tail, blocks=200, settings=EngineSettings(speculation="ngram", shared_cores=True))
    submit_all(rig)
    losses = 0
    while not rig.idle:
        rig.engine.dispatch()
        if losses < 4 and any(share.drafts for frame in rig.engine._in_flight for share in frame.shares):
            losses += 1
            rig.ring.break_ring("a member was killed")
            rig.engine.lose_ring(RingDown("a member was killed"))
            for stage in lost:
                rig.layers[stage - 1] = ToyLayer(stage, rig.plan)
                rig.ring.replace_stage(stage, rig.layers[stage - 1])
            rig.engine.join_ring()
            for sequence in rig.engine._sequences.running:
                assert sequence.kv[0] <= sequence.length
        for _ in range(3):  # so that a frame returns between two losses
            if (returned := rig.ring.receive(0)) is not None:
                rig.engine.collect(returned)
            rig.engine.dispatch()
    assert losses == 4
    assert_same(rig, plain)


def test_a_sequence_that_is_preempted_with_drafts_in_flight_keeps_its_answer(make_rig: MakeRig) -> None:
    before = preemptions()
    rig = make_rig(blocks=12, context=40, settings=EngineSettings(speculation="ngram", max_running=4))
    for request in range(4):
        rig.submit(request, [*REPEATING[:4], request], max_tokens=30)
    rig.run()
    assert preemptions() > before
    for request in range(4):
        assert rig.answer(request) == alone([*REPEATING[:4], request], 30)


def test_blocks_become_known_with_verified_tokens_alone(make_rig: MakeRig) -> None:
    rig = make_rig(settings=DRAFTING)
    rig.submit(1, REPEATING, max_tokens=41)
    rig.run()
    whole = [*REPEATING, *rig.answer(1)]
    rig.submit(2, whole, max_tokens=20)
    rig.run()
    output = rig.client.outputs[2][0]
    assert isinstance(output, TokenOutput)
    assert output.cached_tokens == (len(whole) - 1) // 4 * 4
    assert rig.answer(2) == alone(whole, 20)


def test_a_cancelled_sequence_leaves_no_block_behind(make_rig: MakeRig) -> None:
    rig = make_rig(settings=DRAFTING)
    submit_all(rig)
    while not any(share.drafts for frame in rig.engine._in_flight for share in frame.shares):
        with torch.inference_mode():
            rig.engine.step()
            rig.engine.dispatch()
    for request in range(len(MIXED)):
        rig.engine.submit(Cancellation(request))
    rig.run()
    assert rig.engine._sequences.blocks.used == 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 8, 11])
def test_an_answer_ends_where_it_would(make_rig: MakeRig, max_tokens: int) -> None:
    rig = make_rig(settings=DRAFTING, context=20)
    rig.submit(1, REPEATING[:12], max_tokens=max_tokens)
    rig.run()
    assert rig.answer(1) == alone(REPEATING[:12], min(max_tokens, 8))
    assert rig.client.finish(1) == "length"


def damage(rows: Callable[[LoopbackFrame], list[int]]) -> Callable[[LoopbackFrame], LoopbackFrame]:
    """Makes these rows of a frame that returns not finite."""

    def alter(frame: LoopbackFrame) -> LoopbackFrame:
        hidden = tensor_from(frame.hidden, dtype=torch.float32, width=HIDDEN, device=torch.device("cpu")).clone()
        hidden[rows(frame)] = torch.nan
        frame.hidden = memoryview(bytearray(bytes_of(hidden)))
        return frame

    return alter


@pytest.mark.parametrize("tail", [0, 1])
def test_a_draft_that_leads_to_what_is_not_finite_costs_its_sequence_nothing_but_time(
    make_rig: MakeRig, tail: int
) -> None:
    """With tail layers, what is not finite in the last row spoils those before it, since they are computed together."""
    rig = make_rig(
        tail=tail,
        settings=DRAFTING,
        block_tokens=16,
        alter=damage(lambda frame: [-1] if len(frame.batch.rows) > 1 else []),
    )
    before = preemptions()
    rig.submit(1, REPEATING, max_tokens=60)
    rig.run()
    assert rig.answer(1) == alone(REPEATING, 60, tail=tail)
    assert preemptions() - before == 1


def test_a_sequence_that_is_not_finite_without_drafts_either_fails(make_rig: MakeRig) -> None:
    steps: list[int] = []

    def rows(frame: LoopbackFrame) -> list[int]:
        steps.append(len(frame.batch.rows))
        return list(range(len(frame.batch.rows))) if max(steps) > 1 else []

    rig = make_rig(settings=DRAFTING, alter=damage(rows))
    rig.submit(1, REPEATING, max_tokens=60)
    rig.run()
    answer = rig.answer(1)
    assert answer == alone(REPEATING, 60)[: len(answer)]
    assert rig.client.finish(1) == "internal"
