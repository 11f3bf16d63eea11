"""The proof of correctness over real sockets: a split model's greedy tokens equal unsplit transformers' `generate`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from languagepipes_node.model.architecture import Architecture
from support.models import ModelNamed, ParityModel
from support.thread_ring import ThreadRing, plan_of

# 6 layers in 2, 3 and 5 members (the End Model is one of them), with one-layer stages, with and without tail layers.
SPLITS = {
    "two members": ([(1, 6)], 0),
    "three members": ([(1, 3), (3, 6)], 0),
    "five members, one-layer stages": ([(2, 3), (3, 4), (4, 5), (5, 6)], 0),
    "three members and two tail layers": ([(1, 2), (2, 4)], 2),
}


FAMILIES = ("llama", "llama tied, one kv head", "qwen3", "qwen3 sliding from layer 3", "qwen3_moe")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, model_named: ModelNamed) -> ParityModel:
    return model_named(request.param)


@pytest.mark.parametrize("split", SPLITS)
def test_greedy_tokens_equal_those_of_unsplit_transformers(model: ParityModel, split: str, tmp_path: Path) -> None:
    ranges, tail = SPLITS[split]
    architecture = Architecture.from_config(json.loads((model.path / "config.json").read_text()))
    plan = plan_of(architecture, ranges, dtype="float32", tail=tail, frame_tokens=48, blocks=32)
    # Around block (64) and chunk (48) edges, all running together.
    prompts = [model.prompt(length) for length in (1, 47, 48, 49, 63, 64, 65, 130)]
    with ThreadRing(model.path, plan, tmp_path) as ring:
        answers = ring.generate(prompts, tokens=12)
    assert answers == [model.generate(prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_ring_is_as_close_to_float32_as_unsplit_transformers_in_that_dtype(
    model: ParityModel, dtype: str, tmp_path: Path
) -> None:
    architecture = Architecture.from_config(json.loads((model.path / "config.json").read_text()))
    plan = plan_of(architecture, [(1, 2), (2, 4), (4, 6)], dtype=dtype, blocks=48)
    # Many, since how far single tokens are off differs from processor to processor by more than the two do.
    prompts = [model.prompt(length) for length in range(5, 125, 10)]
    with ThreadRing(model.path, plan, tmp_path) as ring:
        answers = ring.generate(prompts, tokens=12, logprobs=0)
        logprobs = [ring.answers.logprobs[request_id] for request_id in sorted(ring.answers.tokens)]
    ours, theirs = [], []
    for prompt, answer, found in zip(prompts, answers, logprobs, strict=True):
        exact = model.logprobs(prompt, answer)
        rounded = model.logprobs(prompt, answer, dtype=getattr(torch, dtype))
        ours += [abs(a - b) for a, b in zip(found, exact, strict=True)]
        theirs += [abs(a - b) for a, b in zip(rounded, exact, strict=True)]
    # The median: a rounded router may choose another expert for a token, in either of them.
    assert statistics.median(ours) <= 1.25 * statistics.median(theirs)


def test_sequences_that_were_put_back_for_want_of_blocks_end_the_same(model_named: ModelNamed, tmp_path: Path) -> None:
    model = model_named("qwen3")
    architecture = Architecture.from_config(json.loads((model.path / "config.json").read_text()))
    # 6 blocks of 16 tokens for four sequences that end with 3 blocks each: some must be recomputed.
    plan = plan_of(architecture, [(1, 3), (3, 6)], dtype="float32", block_tokens=16, blocks=6, frame_tokens=32)
    prompts = [model.prompt(length) for length in (15, 16, 17, 20)]
    with ThreadRing(model.path, plan, tmp_path) as ring:
        answers = ring.generate(prompts, tokens=24)
    assert answers == [model.generate(prompt, 24) for prompt in prompts]


def test_answers_from_known_blocks_are_those_of_unsplit_transformers(model: ParityModel, tmp_path: Path) -> None:
    architecture = Architecture.from_config(json.loads((model.path / "config.json").read_text()))
    plan = plan_of(architecture, [(1, 3), (3, 5)], dtype="float32", tail=1, block_tokens=16, frame_tokens=48)
    beginning = model.prompt(70)
    prompts = [[*beginning, *model.prompt(length)] for length in (3, 9, 40)]
    with ThreadRing(model.path, plan, tmp_path) as ring:
        answers = [ring.generate([beginning], tokens=12), ring.generate(prompts, tokens=12)]
        again = ring.generate(prompts, tokens=12)
        cached = [ring.answers.cached_tokens[request_id] for request_id in sorted(ring.answers.tokens)]
    assert answers == [[model.generate(beginning, 12)], [model.generate(prompt, 12) for prompt in prompts]]
    assert again == answers[1]
    assert cached == [0, 64, 64, 64, 64, 64, 96]
