"""Sequences that begin alike: who computes the beginning, who finds it, and what becomes of it when KV is lost."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.requests import Cancellation, Failure, PromptScores, SamplingParameters, TokenOutput
from languagepipes_node.wire.errors import RingDown
from support.toy_engine import VOCABULARY, MakeRig, Rig, ToyLayer, alone, preemptions

PROMPT = random.Random(11).choices(range(VOCABULARY), k=22)  # five full blocks of 4, and 2 tokens


def cached_tokens(rig: Rig, request: int) -> int:
    return next(o.cached_tokens for o in rig.client.outputs[request] if isinstance(o, TokenOutput))


def computed_tokens(rig: Rig) -> int:
    """That the first stage computed, prompts' and answers'."""
    return sum(batch.tokens for batch in rig.layers[0].batches)


def turn(rig: Rig) -> None:
    """One frame out, and the oldest back."""
    with torch.inference_mode():
        rig.engine.step()


def until_streaming(rig: Rig, *requests: int) -> None:
    for _ in range(200):
        turn(rig)
        if all(len(rig.answer(request)) > 1 for request in requests):
            return
    raise AssertionError("no tokens")


def lose(rig: Rig, stage: int) -> None:
    """A stage's process ends, and another one, without its KV, takes its place."""
    rig.ring.break_ring("a member was killed")
    rig.engine.lose_ring(RingDown("a member was killed"))
    rig.layers[stage - 1] = ToyLayer(stage, rig.plan)
    rig.ring.replace_stage(stage, rig.layers[stage - 1])
    rig.engine.join_ring()


@pytest.mark.parametrize("tail", [0, 1])
def test_a_prompt_again_computes_only_what_follows_its_full_blocks(make_rig: MakeRig, tail: int) -> None:
    rig = make_rig(tail=tail)
    rig.submit(1, PROMPT)
    rig.run()
    before = computed_tokens(rig)
    rig.submit(2, PROMPT)
    rig.run()
    assert rig.answer(1) == rig.answer(2) == alone(PROMPT, 8, tail=tail)
    assert (cached_tokens(rig, 1), cached_tokens(rig, 2)) == (0, 20)
    assert computed_tokens(rig) - before == 2 + 7  # the last token of an answer is never computed


def test_the_last_token_of_a_prompt_is_always_computed(make_rig: MakeRig) -> None:
    rig = make_rig()
    for request in (1, 2):
        rig.submit(request, PROMPT[:20])
        rig.run()
    assert rig.answer(1) == rig.answer(2) == alone(PROMPT[:20], 8)
    assert cached_tokens(rig, 2) == 16


def test_the_next_turn_of_a_conversation_finds_the_answer_too(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, PROMPT, max_tokens=12)
    rig.run()
    conversation = [*PROMPT, *rig.answer(1), 5, 6, 7]
    rig.submit(2, conversation)
    rig.run()
    assert cached_tokens(rig, 2) == 32  # of 22 + 11 computed tokens
    assert rig.answer(2) == alone(conversation, 8)


def test_seeded_answers_are_the_same_from_the_cache(make_rig: MakeRig) -> None:
    sampling = SamplingParameters(temperature=1.0, seed=7)
    answers = []
    for prefix_cache in (True, False):
        rig = make_rig(settings=EngineSettings(prefix_cache=prefix_cache))
        for request in (1, 2):
            rig.submit(request, PROMPT, sampling=sampling)
            rig.run()
            answers.append(rig.answer(request))
        assert cached_tokens(rig, 2) == (20 if prefix_cache else 0)
    assert answers == [answers[0]] * 4


def test_only_sequences_of_one_domain_share(make_rig: MakeRig) -> None:
    rig = make_rig()
    for request, domain in enumerate(("a", "b", "a", "")):
        rig.submit(request, PROMPT, cache_domain=domain)
        rig.run()
    assert [cached_tokens(rig, request) for request in range(4)] == [0, 0, 20, 0]
    assert [rig.answer(request) for request in range(4)] == [alone(PROMPT, 8)] * 4


def test_choices_of_one_prompt_compute_it_once(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_running=16))
    for request in range(8):
        rig.submit(request, PROMPT, max_tokens=1)
    rig.run()
    assert [rig.answer(request) for request in range(8)] == [alone(PROMPT, 1)] * 8
    assert [cached_tokens(rig, request) for request in range(8)] == [0] + [20] * 7
    assert computed_tokens(rig) == 22 + 7 * 2


@pytest.mark.parametrize("fields", [{}, {"prompt_logprobs": 0}], ids=["last block", "scores"])
def test_what_each_has_to_compute_anyway_is_computed_together(make_rig: MakeRig, fields: dict[str, int]) -> None:
    rig = make_rig(frame_tokens=64, settings=EngineSettings(shared_cores=True))
    rig.submit(0, PROMPT[:8])
    rig.run()
    frames = rig.ring.frames_sent
    for request in (1, 2, 3):
        rig.submit(request, PROMPT[:8], max_tokens=1, **fields)
    rig.run()
    assert [rig.answer(request) for request in (1, 2, 3)] == [alone(PROMPT[:8], 1)] * 3
    assert rig.ring.frames_sent - frames == 1


def test_who_waits_for_a_beginning_computes_it_if_its_leader_leaves(make_rig: MakeRig) -> None:
    rig = make_rig(frame_tokens=8, frames_in_flight=1)
    rig.submit(1, PROMPT)
    rig.submit(2, PROMPT)
    turn(rig)
    assert [len(rig.engine._sequences.running), len(rig.engine._sequences.waiting)] == [1, 1]
    rig.engine.submit(Cancellation(1))
    rig.run()
    assert rig.answer(2) == alone(PROMPT, 8)
    assert cached_tokens(rig, 2) == 8


def test_another_client_waits_for_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(frames_in_flight=1)
    rig.submit(1, PROMPT, client="a")
    rig.submit(2, PROMPT, client="b")
    turn(rig)
    rig.run()
    assert rig.answer(1) == rig.answer(2) == alone(PROMPT, 8)


def test_scores_of_a_prompt_are_computed_whatever_is_known(make_rig: MakeRig) -> None:
    rig = make_rig()
    for request in (1, 2):
        rig.submit(request, PROMPT, prompt_logprobs=0)
        rig.run()
        assert cached_tokens(rig, request) == 0
        scores = [o for o in rig.client.outputs[request] if isinstance(o, PromptScores)]
        assert sum(len(part.logprobs) for part in scores) == len(PROMPT) - 1
    rig.submit(3, PROMPT)
    rig.run()
    assert cached_tokens(rig, 3) == 20  # what was scored is known all the same


def test_the_longest_idle_blocks_make_room(make_rig: MakeRig) -> None:
    rig = make_rig(blocks=14, context=40)
    prompts = [random.Random(seed).choices(range(VOCABULARY), k=22) for seed in range(3)]
    for request, prompt in enumerate([prompts[0], prompts[1], prompts[0], prompts[2], prompts[0], prompts[1]]):
        rig.submit(request, prompt, max_tokens=2)
        rig.run()
        assert rig.answer(request) == alone(prompt, 2)
    found = [cached_tokens(rig, request) for request in range(6)]
    assert found[:5] == [0, 0, 20, 0, 20]
    assert found[5] == 12  # the end of what was idle for longest went first
    assert rig.engine._sequences.blocks.used == 0


def test_a_sequence_that_was_put_back_finds_its_own_blocks(make_rig: MakeRig) -> None:
    rig = make_rig(blocks=12, context=40)
    others = [random.Random(seed).choices(range(VOCABULARY), k=9) for seed in (1, 2)]
    before = preemptions()
    for request, prompt in enumerate(others):
        rig.submit(request, prompt, max_tokens=24)
    rig.run()
    assert preemptions() > before
    assert [rig.answer(request) for request in (0, 1)] == [alone(prompt, 24) for prompt in others]
    assert computed_tokens(rig) < sum(9 + 23 for _ in others) + 12  # without the cache it computes some 20 tokens again


@pytest.mark.parametrize("stage", [1, 2])
def test_sequences_that_share_blocks_go_on_after_a_stage_lost_its_kv(make_rig: MakeRig, stage: int) -> None:
    rig = make_rig(frame_tokens=6)  # so that replays end in the middle of a block
    for request in range(4):
        rig.submit(request, [*PROMPT[:12], *PROMPT[request : request + 6]], max_tokens=16)
    until_streaming(rig, *range(4))
    assert max(rig.engine._sequences.blocks.cached._users.values()) == 4
    lose(rig, stage)
    assert len(rig.engine._sequences.blocks.cached) == 0
    rig.run()
    for request in range(4):
        assert rig.answer(request) == alone([*PROMPT[:12], *PROMPT[request : request + 6]], 16)
    assert rig.engine._sequences.blocks.used == 0


def test_idle_blocks_are_forgotten_when_a_stage_lost_its_kv(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, PROMPT)
    rig.run()
    lose(rig, 2)
    rig.submit(2, PROMPT)
    rig.run()
    assert (rig.answer(2), cached_tokens(rig, 2)) == (alone(PROMPT, 8), 0)


def test_a_lost_ring_whose_stages_kept_their_kv_forgets_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, PROMPT)
    rig.run()
    rig.ring.break_ring("a link was cut")
    rig.engine.lose_ring(RingDown("a link was cut"))
    rig.engine.join_ring()
    rig.submit(2, PROMPT)
    rig.run()
    assert (rig.answer(2), cached_tokens(rig, 2)) == (alone(PROMPT, 8), 20)


def test_blocks_of_a_sequence_that_failed_are_not_found(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, PROMPT)
    while not rig.engine._sequences.blocks.cached:
        turn(rig)
    rig.layers[1].cache[:] = torch.nan  # memory that went bad
    rig.run()
    assert isinstance(rig.client.outputs[1][-1], Failure)
    assert len(rig.engine._sequences.blocks.cached) == 0
    rig.submit(2, PROMPT)
    rig.run()
    assert (rig.answer(2), cached_tokens(rig, 2)) == (alone(PROMPT, 8), 0)


def test_switched_off_nothing_is_shared(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(prefix_cache=False))
    for request in (1, 2, 3):
        rig.submit(request, PROMPT)
    rig.run()
    assert [cached_tokens(rig, request) for request in (1, 2, 3)] == [0, 0, 0]
    assert rig.engine._sequences.blocks.free == rig.plan.kv_blocks
    assert np.array_equal([rig.answer(request) for request in (1, 2, 3)], [alone(PROMPT, 8)] * 3)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_stream_at_the_end_of_its_blocks_goes_on_after_the_last_stage_lost_its_kv(
    make_rig: MakeRig, prefix_cache: bool
) -> None:
    """The last tokens of two streams need a block each, and one is free: the later stream gives way, as in any step."""
    settings = EngineSettings(prefix_cache=prefix_cache, shared_cores=True)
    rig = make_rig(blocks=9, context=32, frame_tokens=64, settings=settings)
    prompts = [random.Random(seed).choices(range(VOCABULARY), k=15) for seed in (1, 2)]
    for request, prompt in enumerate(prompts):
        rig.submit(request, prompt, max_tokens=10)
    table = rig.engine._sequences
    while not table.running or min(sequence.length for sequence in table.running) < 17:
        turn(rig)
    assert ([(one.length, one.blocks) for one in table.running], table.blocks.free) == ([(17, 4), (17, 4)], 1)
    lose(rig, 2)
    rig.run()
    assert [rig.answer(request) for request in (0, 1)] == [alone(prompt, 10) for prompt in prompts]
