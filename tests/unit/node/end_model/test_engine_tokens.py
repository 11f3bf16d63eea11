"""Whatever else runs at the same time, each request gets the tokens that the model alone would give it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.requests import Cancellation, Failure, SamplingParameters, TokenOutput
from support.toy_engine import GREEDY, VOCABULARY, MakeRig, alone, preemptions


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(VOCABULARY), k=length)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40])
@pytest.mark.parametrize("tail", [0, 2])
def test_prompts_around_block_and_chunk_edges_give_the_same_tokens(make_rig: MakeRig, length: int, tail: int) -> None:
    rig = make_rig(tail=tail)
    rig.submit(1, prompt_of(length), max_tokens=9)
    rig.run()
    assert rig.answer(1) == alone(prompt_of(length), 9, tail=tail)
    assert rig.client.finish(1) == "length"


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("shared_cores", [False, True])
def test_many_unlike_requests_at_once_give_the_same_tokens(
    make_rig: MakeRig, threads: bool, shared_cores: bool
) -> None:
    rig = make_rig(threads=threads, settings=EngineSettings(shared_cores=shared_cores), blocks=200)
    lengths = [1, 30, 4, 17, 9, 2, 40, 16]
    for request, length in enumerate(lengths):
        rig.submit(request, prompt_of(length, request), max_tokens=3 + request)
    rig.run()
    for request, length in enumerate(lengths):
        assert rig.answer(request) == alone(prompt_of(length, request), 3 + request)


def test_requests_that_arrive_while_others_stream_change_nothing(make_rig: MakeRig) -> None:
    rig = make_rig(threads=True, stages=3)
    for request in range(6):
        rig.submit(request, prompt_of(5 + 7 * request, request), max_tokens=12)
        for _ in range(4):
            rig.engine.step()
    rig.run()
    for request in range(6):
        assert rig.answer(request) == alone(prompt_of(5 + 7 * request, request), 12, stages=3)


@pytest.mark.parametrize("threads", [False, True])
def test_preempted_sequences_are_recomputed_and_go_on(make_rig: MakeRig, threads: bool) -> None:
    # 4 sequences grow to 8 blocks each; 14 blocks are there.
    rig = make_rig(blocks=14, context=56, threads=threads)
    for request in range(4):
        rig.submit(request, prompt_of(6, request), max_tokens=26)
    before = preemptions()
    rig.run()
    assert preemptions() > before
    for request in range(4):
        assert rig.answer(request) == alone(prompt_of(6, request), 26)
    assert rig.engine._sequences.blocks.used == 0


def test_a_stop_token_ends_the_sequence_and_is_handed_over(make_rig: MakeRig) -> None:
    rig = make_rig()
    expected = alone(prompt_of(8), 10)
    stop = expected[4]
    rig.submit(1, prompt_of(8), max_tokens=10, stop_token_ids=frozenset({stop}))
    rig.run()
    assert rig.answer(1) == expected[: expected.index(stop) + 1]
    assert rig.client.finish(1) == "stop"


def test_the_context_length_ends_a_sequence(make_rig: MakeRig) -> None:
    rig = make_rig(context=20)
    rig.submit(1, prompt_of(15), max_tokens=100)
    rig.run()
    assert len(rig.answer(1)) == 5
    assert rig.client.finish(1) == "length"


def test_a_prompt_that_does_not_fit_the_context_is_refused_with_its_length(make_rig: MakeRig) -> None:
    rig = make_rig(context=20)
    rig.submit(1, prompt_of(20))
    rig.run()
    (failure,) = rig.client.outputs[1]
    assert isinstance(failure, Failure)
    assert "20 tokens" in failure.message


def test_seeds_reproduce_tokens_whoever_shares_the_batch(make_rig: MakeRig) -> None:
    wild = SamplingParameters(temperature=1.5, top_p=0.9, seed=-3)
    first = make_rig()
    first.submit(1, prompt_of(10), sampling=wild, max_tokens=20)
    first.run()
    second = make_rig(threads=True, blocks=18, context=48)
    for other in range(10, 14):
        second.submit(other, prompt_of(9, other), sampling=SamplingParameters(seed=other), max_tokens=20)
    second.submit(1, prompt_of(10), sampling=wild, max_tokens=20)
    second.run()
    assert first.answer(1) == second.answer(1)
    assert first.answer(1) != alone(prompt_of(10), 20)


def test_without_a_seed_two_runs_differ(make_rig: MakeRig) -> None:
    rig = make_rig()
    for request in (1, 2):
        rig.submit(request, prompt_of(10), sampling=SamplingParameters(temperature=2.0), max_tokens=30)
    rig.run()
    assert rig.answer(1) != rig.answer(2)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_penalties_count_generated_tokens_also_after_preemption(make_rig: MakeRig, name: str) -> None:
    # With an overwhelming penalty no token comes twice, in spite of recomputation.
    penalty = replace(GREEDY, **{name: 1000.0})
    rig = make_rig(blocks=14, context=56)
    for request in range(4):
        rig.submit(request, prompt_of(6, request), max_tokens=26, sampling=penalty)
    rig.run()
    for request in range(4):
        assert len(set(rig.answer(request))) == 26


def test_logprobs_are_reported_with_the_alternatives_asked_for(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, prompt_of(6), max_tokens=3, logprobs=2)
    rig.run()
    for output in rig.client.outputs[1]:
        assert isinstance(output, TokenOutput)
        assert output.logprobs is not None
        assert len(output.logprobs.top) == 2
        assert output.logprobs.top[0] == (output.token, pytest.approx(output.logprobs.logprob))
        assert output.logprobs.logprob < 0


def test_a_cancelled_request_is_in_no_further_frame_and_its_blocks_come_back(make_rig: MakeRig) -> None:
    rig = make_rig(threads=True)
    rig.submit(1, prompt_of(10), max_tokens=60)
    rig.submit(2, prompt_of(10, 1), max_tokens=20)
    while len(rig.answer(1)) < 5:
        rig.engine.step()
    rig.engine.submit(Cancellation(1))
    rig.engine.step()
    seen = len(rig.answer(1))
    frames = rig.ring.frames_sent
    rig.run()
    assert len(rig.answer(1)) <= seen
    assert all(batch.sequences == 1 for batch in rig.layers[0].batches[frames + 1 :])
    assert rig.answer(2) == alone(prompt_of(10, 1), 20)
    assert rig.engine._sequences.blocks.used == 0


def test_a_request_cancelled_before_its_first_frame_costs_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, prompt_of(10))
    rig.engine.submit(Cancellation(1))
    rig.run()
    assert rig.ring.frames_sent == 0
    assert rig.client.outputs == {}


def test_more_than_running_and_queued_are_refused_with_queue_full(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_running=2, max_queued=1))
    for request in range(5):
        rig.submit(request, prompt_of(5, request))
    rig.run()
    assert [rig.client.finish(request) for request in range(5)] == ["length"] * 3 + ["queue_full"] * 2


def test_prompt_chunks_follow_each_other_round_the_ring(make_rig: MakeRig) -> None:
    rig = make_rig(stages=3, frame_tokens=8, frames_in_flight=4)
    rig.submit(1, prompt_of(40))
    rig.engine._take_commands()
    in_flight = []
    for _ in range(5):
        rig.engine.step()
        in_flight.append(len(rig.engine._in_flight) + 1)
    assert max(in_flight) == 4
    rig.run()
    assert rig.answer(1) == alone(prompt_of(40), 8, stages=3)


def test_no_stop_token_comes_before_min_tokens(make_rig: MakeRig) -> None:
    expected = alone(prompt_of(8), 10)
    stops = frozenset(expected)  # every token that the model would choose
    rig = make_rig()
    rig.submit(1, prompt_of(8), max_tokens=30, stop_token_ids=stops, sampling=replace(GREEDY, min_tokens=6))
    rig.run()
    assert not set(rig.answer(1)[:6]) & stops
    assert rig.client.finish(1) in ("stop", "length")


def test_a_repetition_penalty_counts_prompt_and_answer_also_after_preemption(make_rig: MakeRig) -> None:
    penalty = replace(GREEDY, repetition_penalty=1e6)
    rig = make_rig(blocks=14, context=56)
    for request in range(4):
        rig.submit(request, prompt_of(6, request), max_tokens=26, sampling=penalty)
    rig.run()
    for request in range(4):
        answer = rig.answer(request)
        # Logits below zero are made less, those above nearly zero: what was said comes back only after all else.
        assert len({*answer, *prompt_of(6, request)}) == 26 + len(set(prompt_of(6, request)))


@pytest.mark.parametrize("tail", [0, 2])
def test_a_request_that_cannot_be_sampled_fails_alone(make_rig: MakeRig, tail: int) -> None:
    rig = make_rig(tail=tail)
    rig.submit(1, prompt_of(5), max_tokens=12)
    # No route lets such a bias through: it stands for whatever else sampling may raise at.
    rig.submit(2, prompt_of(6), max_tokens=12, sampling=replace(GREEDY, logit_bias=((1.5, 1.0),)))  # type: ignore[arg-type]
    epoch = rig.engine.status.epoch
    rig.run()
    assert rig.answer(1) == alone(prompt_of(5), 12, tail=tail)
    (failure,) = rig.client.outputs[2]
    assert isinstance(failure, Failure)
    assert (failure.code, "could be sampled" in failure.message) == ("internal", True)
    assert rig.engine.status.epoch == epoch


def test_log_probabilities_that_fail_before_a_large_frame_end_their_request_alone(make_rig: MakeRig) -> None:
    """The frame was decided with the request in it, and what waits to be handed over is worked out before it leaves."""
    rig = make_rig(blocks=128, frame_tokens=128, frames_in_flight=1)
    for request in range(40):
        rig.submit(request, [request, 2])
    rig.submit(40, [40, 2], logprobs=1.5)  # a number of alternatives that nobody can count
    rig.run()
    assert rig.client.finish(40) == "internal"
    assert [rig.answer(request) for request in range(40)] == [alone([request, 2], 8) for request in range(40)]
