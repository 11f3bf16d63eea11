"""Greedy tokens of a split model equal those of transformers' `generate` on the unsplit one, in float32."""

from __future__ import annotations

import pytest
from support.models import ParityModel
from support.replica import SPLITS, Replica, Running


@pytest.mark.parametrize("members", SPLITS)
def test_a_model_split_over_members_answers_like_generate(model: ParityModel, members: int) -> None:
    prompt = model.prompt(37)
    assert Replica(model, SPLITS[members]).generate(prompt, 30) == model.generate(prompt, 30)


def test_the_end_model_may_keep_the_last_layers_too(model: ParityModel) -> None:
    prompt = model.prompt(21)
    replica = Replica(model, SPLITS[3], tail=True)
    assert replica.generate(prompt, 12, chunk=16) == model.generate(prompt, 12)


def test_many_sequences_of_unlike_lengths_decode_together(model: ParityModel) -> None:
    replica = Replica(model, SPLITS[3])
    prompts = [model.prompt(length, seed=1) for length in (3, 16, 17, 40, 90)]
    sequences = [Running() for _ in prompts]
    steps = 8
    answers: list[list[int]] = [[] for _ in prompts]
    logits = replica.step([(s, p, [len(p) - 1]) for s, p in zip(sequences, prompts, strict=True)])
    for _ in range(steps):
        for answer, row in zip(answers, logits, strict=True):
            answer.append(int(row.argmax()))
        logits = replica.step([(s, a[-1:], [0]) for s, a in zip(sequences, answers, strict=True)])
    assert answers == [model.generate(prompt, steps) for prompt in prompts]


def test_decode_tokens_and_a_prefill_chunk_share_a_step(model: ParityModel) -> None:
    replica = Replica(model, SPLITS[2])
    first, second, late = (model.prompt(length, seed=2) for length in (30, 41, 50))
    a, b, c = Running(), Running(), Running()
    expected = {name: model.generate(p, 4) for name, p in (("a", first), ("b", second), ("c", late))}
    one = replica.step([(a, first, [29]), (b, second, [40])]).argmax(-1).tolist()
    # The late prompt comes in two chunks, between the other two's tokens.
    two = replica.step([(a, one[:1], [0]), (c, late[:20], []), (b, one[1:], [0])]).argmax(-1).tolist()
    three = replica.step([(c, late[20:], [29]), (a, two[:1], [0]), (b, two[1:], [0])]).argmax(-1).tolist()
    assert [one[0], two[0], three[1]] == expected["a"][:3]
    assert [one[1], two[1], three[2]] == expected["b"][:3]
    assert three[0] == expected["c"][0]


def test_a_sequence_in_scattered_blocks_answers_the_same(model: ParityModel) -> None:
    prompt = model.prompt(70)
    replica = Replica(model, SPLITS[2], scattered=True)
    assert replica.generate(prompt, 12, chunk=33) == model.generate(prompt, 12)


def test_a_preempted_sequence_is_recomputed_into_other_blocks(model: ParityModel) -> None:
    prompt = model.prompt(25)
    expected = model.generate(prompt, 16)
    replica = Replica(model, SPLITS[3])
    sequence = Running()
    tokens = [int(replica.step([(sequence, prompt, [24])]).argmax())]
    while len(tokens) < 8:
        tokens.append(int(replica.step([(sequence, tokens[-1:], [0])]).argmax()))
    replica.end_sequence(sequence)
    # Somebody else's tokens go where it was.
    other = Running()
    replica.free = replica.free[-2:] + replica.free[:-2]
    replica.step([(other, model.prompt(32, seed=3), [])])
    known = prompt + tokens
    tokens.append(int(replica.step([(sequence, known, [len(known) - 1])]).argmax()))
    while len(tokens) < 16:
        tokens.append(int(replica.step([(sequence, tokens[-1:], [0])]).argmax()))
    assert tokens == expected
