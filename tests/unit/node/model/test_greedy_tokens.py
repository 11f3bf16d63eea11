"""Greedy tokens of a split model equal those of transformers' `generate` on the unsplit one, in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from languagepipes_node.model.facts import read_facts
from safetensors.torch import load_file, save_file
from support.models import ModelNamed, ParityModel
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


@pytest.mark.parametrize("stored", ["embedding and head", "head"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "olmo2 by transformers' layers"])
def test_a_head_that_is_stored_counts_whatever_config_says_of_tied_embeddings(
    model_named: ModelNamed, tmp_path: Path, name: str, stored: str
) -> None:
    shutil.copytree(model_named(name).path, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    if stored == "head":
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["model.embed_tokens.weight"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edited = ParityModel.read(tmp_path)
    prompt = edited.prompt(23)
    assert edited.architecture.tied_embeddings == (stored == "head")
    facts = read_facts({**config, "tie_word_embeddings": True}, edited.source.index, "main", 1)
    assert facts.tied_embeddings == (stored == "head")
    assert Replica(edited, SPLITS[2]).generate(prompt, 16) == edited.generate(prompt, 16)


@pytest.mark.parametrize("rope", ["linear", "yarn"])
def test_positions_that_the_ropes_scaling_adds_are_computed_as_generate_does(
    model_named: ModelNamed, tmp_path: Path, rope: str
) -> None:
    shutil.copytree(model_named("llama").path, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"rope_theta": 1e4, "rope_scaling": {"type": rope, "factor": 4.0}, "max_position_embeddings": 64}
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    edited = ParityModel.read(tmp_path)
    prompt = edited.prompt(200)
    assert edited.architecture.max_position == 256
    assert Replica(edited, SPLITS[2]).generate(prompt, 16) == edited.generate(prompt, 16)
