"""A mask and every way to pick a token: what is forbidden is never drawn, the rest keeps its proportions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from languagepipes_node.end_model.requests import SamplingParameters
from languagepipes_node.end_model.sampling import Sampler, SamplingRow

VOCABULARY = 20_000
ALLOWED = (3, 250, 4999, 19_000)
DRAWS = 2000


def forbidden() -> np.ndarray:
    mask = np.ones(VOCABULARY - 500, np.bool_)  # the tokenizer has 500 tokens fewer than the head has rows
    mask[list(ALLOWED)] = False
    return mask


def draw(parameters: SamplingParameters, **fields: object) -> Counter[int]:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(5))
    logits[list(ALLOWED)] = torch.tensor([-2.0, -1.0, -3.0, -2.5])
    logits[VOCABULARY - 1] = 50.0
    mask = forbidden()
    counts: Counter[int] = Counter()
    for first in range(0, DRAWS, 100):
        rows = [SamplingRow(parameters, 9, at, {}, forbidden=mask, **fields) for at in range(first, first + 100)]  # type: ignore[arg-type]
        counts.update(s.token for s in Sampler().sample(logits.repeat(100, 1), rows) if s is not None)
    return counts


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(),
        SamplingParameters(top_k=3),
        SamplingParameters(top_k=50),
        SamplingParameters(top_p=0.999),
        SamplingParameters(min_p=0.01),
        SamplingParameters(temperature=2.0, top_k=1000, top_p=0.9999, min_p=0.001),
        SamplingParameters(temperature=1e-6),
        SamplingParameters(temperature=0),
        SamplingParameters(logit_bias=((7, 100.0), (8, 100.0))),
    ],
)
def test_only_allowed_tokens_are_drawn(parameters):
    counts = draw(parameters)
    assert sum(counts.values()) == DRAWS
    assert set(counts) <= set(ALLOWED)
    if parameters.temperature < 0.1:
        assert set(counts) == {250}
    else:
        assert counts[250] == max(counts.values())


def test_allowed_tokens_keep_their_proportions():
    counts = draw(SamplingParameters())
    weights = {token: math.exp(logit) for token, logit in zip(ALLOWED, (-2.0, -1.0, -3.0, -2.5), strict=True)}
    for token, weight in weights.items():
        expected = weight / sum(weights.values())
        assert abs(counts[token] / DRAWS - expected) < 4 * math.sqrt(expected * (1 - expected) / DRAWS)
