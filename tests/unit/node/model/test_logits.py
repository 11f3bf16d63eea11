"""Logits of every position agree with the unsplit model: at block and chunk edges, in every dtype, by every kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.choices import candidates
from languagepipes_node.model.linear import WHOLE, Arithmetic, always
from support.models import ParityModel
from support.replica import MEASURED, SPLITS, Replica, Running

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EDGES = (1, 2, 63, 64, 65, 127, 128, 129)
# float32: the largest error of a logit, as a share of the largest logit.
FLOAT32 = 2e-5
# 16 bits: weights fifteen times larger than a trained model's make any rounding grow, and a router's near tie may fall
# either way. So the measure is transformers itself in the same dtype: our distance from the float32 model (the median
# over positions) is at most so many times its distance.
SIXTEEN_BITS = 1.5


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def distance(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).square().mean(-1).sqrt().median())


def assert_close(ours: torch.Tensor, model: ParityModel, tokens: list[int], dtype: torch.dtype) -> None:
    reference = model.logits(tokens)
    if dtype == torch.float32:
        assert error(ours, reference) < FLOAT32
    else:
        assert distance(ours, reference) < SIXTEEN_BITS * distance(model.logits(tokens, dtype), reference)


@pytest.mark.parametrize("name", ["llama", "qwen3 sliding from layer 3", "qwen3_moe", "gemma3 by transformers' layers"])
def test_prompts_end_anywhere_around_a_block(name: str, model_named: Callable[[str], ParityModel]) -> None:
    model = model_named(name)
    replica = Replica(model, SPLITS[2], block_tokens=64, compute=MEASURED)
    for length in EDGES:
        prompt = model.prompt(length)
        assert error(replica.logits(prompt), model.logits(prompt)) < FLOAT32, length


# Chunks of one token: test_decode_agrees_within_the_tolerance_of_the_dtype.
@pytest.mark.parametrize("chunk", [15, 16, 17, 64])
def test_chunks_end_anywhere_around_a_block(model: ParityModel, chunk: int) -> None:
    prompt = model.prompt(67)
    assert error(Replica(model, SPLITS[2]).logits(prompt, chunk), model.logits(prompt)) < FLOAT32


@pytest.mark.parametrize("scattered", [False, True], ids=["together", "scattered"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_agree_within_the_tolerance_of_the_dtype(
    model: ParityModel, dtype: torch.dtype, scattered: bool
) -> None:
    prompt = model.prompt(90)
    replica = Replica(model, SPLITS[3], dtype=dtype, scattered=scattered)
    assert_close(replica.logits(prompt, chunk=37), model, prompt, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode_agrees_within_the_tolerance_of_the_dtype(model: ParityModel, dtype: torch.dtype) -> None:
    prompt = model.prompt(40, seed=4)
    assert_close(Replica(model, SPLITS[2], dtype=dtype).logits(prompt, chunk=1), model, prompt, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_sequences_decode_together_as_they_do_alone(model: ParityModel, dtype: torch.dtype) -> None:
    prompts = [model.prompt(length, seed=5) for length in (30, 33, 70)]
    replica = Replica(model, SPLITS[2], dtype=dtype)
    sequences = [Running() for _ in prompts]
    replica.step([(s, p[:-20], []) for s, p in zip(sequences, prompts, strict=True)])
    rows = []
    for place in range(-20, 0):
        rows.append(replica.step([(s, [p[place]], [0]) for s, p in zip(sequences, prompts, strict=True)]))
    together = torch.stack(rows, dim=1)  # [sequences, 20, vocabulary]
    reference = torch.stack([model.logits(p)[-20:] for p in prompts])
    theirs = torch.stack([model.logits(p, dtype)[-20:] for p in prompts])
    assert distance(together, reference) < SIXTEEN_BITS * distance(theirs, reference)


@pytest.mark.parametrize(
    ("dtype", "way"), [(dtype, way) for dtype in DTYPES for way in (*candidates(dtype), WHOLE)], ids=str
)
@pytest.mark.parametrize("name", ["llama with biases, llama3 rope", "qwen3_moe with dense layers"])
def test_every_kernel_computes_the_same(
    name: str, dtype: torch.dtype, way: Arithmetic, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named(name)
    prompt = model.prompt(80)
    replica = Replica(model, SPLITS[2], dtype=dtype, compute=always(way))
    assert_close(replica.logits(prompt, chunk=79), model, prompt, dtype)


def test_running_a_batch_again_changes_nothing(model: ParityModel) -> None:
    replica = Replica(model, SPLITS[2])
    prompt = model.prompt(30)
    reference = replica.logits(prompt, chunk=10)
    replica.free.sort()
    results = []
    for begin in range(0, 30, 10):
        batch = Batch(
            counts=np.array([10], dtype=np.int32),
            starts=np.array([begin], dtype=np.int32),
            run_counts=np.array([1], dtype=np.int32),
            runs=np.array([[0, -(-(begin + 10) // replica.block_tokens)]], dtype=np.int32),
            rows=np.arange(10, dtype=np.int32),
        )
        replica.run(prompt[begin : begin + 10], batch)
        results.append(replica.run(prompt[begin : begin + 10], batch))
    assert torch.equal(torch.cat(results), reference)
