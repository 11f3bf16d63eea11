"""Sampling against a plain reference: the distribution it ought to be, written down token by token."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_node.end_model.requests import SamplingParameters
from languagepipes_node.end_model.sampling import Sampler, SamplingRow

DRAWS = 4000


def reference(logits: list[float], p: SamplingParameters, counts: dict[int, int]) -> dict[int, float]:
    """What each token's probability ought to be."""
    scores = dict(enumerate(logits))
    for token, count in counts.items():
        scores[token] -= p.presence_penalty + p.frequency_penalty * count
    for token, bias in p.logit_bias:
        scores[token] += bias
    if p.temperature == 0:
        return {max(scores, key=lambda t: (scores[t], -t)): 1.0}
    top = max(scores.values())
    weights = {t: math.exp((s - top) / p.temperature) for t, s in scores.items()}
    kept = sorted(weights, key=lambda t: (-weights[t], t))
    if p.top_k:
        kept = kept[: p.top_k]
    if p.top_p < 1:
        total, mass, nucleus = sum(weights[t] for t in kept), 0.0, []
        for token in kept:
            nucleus.append(token)
            mass += weights[token]
            if mass >= p.top_p * total:
                break
        kept = nucleus
    kept = [t for t in kept if weights[t] >= p.min_p * weights[kept[0]]]
    total = sum(weights[t] for t in kept)
    return {t: weights[t] / total for t in kept}


def draw(
    logits: list[float], p: SamplingParameters, *, draws: int = DRAWS, counts: dict[int, int] | None = None
) -> Counter[int]:
    """`draws` tokens, one for each position."""
    rows = [SamplingRow(p, 17, position, counts or {}) for position in range(draws)]
    sampled = Sampler().sample(torch.tensor(logits).repeat(draws, 1), rows)
    return Counter(s.token for s in sampled if s is not None)


LOGITS = [1.0, 3.0, 2.0, -1.0, 2.5, 0.0, 2.9, -4.0]


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(),
        SamplingParameters(temperature=0.5),
        SamplingParameters(temperature=2.0, top_p=0.8),
        SamplingParameters(top_k=3),
        SamplingParameters(top_k=1),
        SamplingParameters(top_k=100),
        SamplingParameters(top_p=0.01),
        SamplingParameters(min_p=0.2),
        SamplingParameters(min_p=1.0),
        SamplingParameters(temperature=1.3, top_k=6, top_p=0.9, min_p=0.1),
        SamplingParameters(logit_bias=((1, -100.0), (7, 6.0))),
        SamplingParameters(logit_bias=((5, 100.0),)),
        SamplingParameters(presence_penalty=1.5, frequency_penalty=0.5),
        SamplingParameters(temperature=0.0, presence_penalty=2.0),
        SamplingParameters(temperature=1e-30),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_the_definition_says(parameters: SamplingParameters) -> None:
    counts = {1: 1, 6: 3}
    expected = reference(LOGITS, parameters, counts)
    seen = draw(LOGITS, parameters, counts=counts)
    assert set(seen) <= set(expected)
    for token, probability in expected.items():
        # Five standard deviations: a wrong rule is far outside, chance is not.
        margin = 5 * math.sqrt(DRAWS * probability * (1 - probability)) + 1e-9
        assert abs(seen[token] - DRAWS * probability) <= max(margin, 1), (token, seen, expected)


@settings(max_examples=150, deadline=None)
@given(
    # Multiples of 1/64: what is equal in float64 is equal in float32, so that ties are the same ties.
    logits=st.lists(st.integers(-1920, 1920).map(lambda n: n / 64), min_size=1, max_size=600),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 1000]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    seed=st.integers(-(2**63), 2**64),
)
def test_only_tokens_that_the_truncation_keeps_are_drawn(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    parameters = SamplingParameters(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    (sampled,) = Sampler().sample(torch.tensor([logits]), [SamplingRow(parameters, seed, 5, {})])
    assert sampled is not None
    # Rounding may move the last token of a nucleus by one: allow what a hair more of top_p would keep.
    hair = SamplingParameters(
        temperature=temperature, top_p=min(1.0, top_p + 1e-6), top_k=top_k, min_p=min_p * (1 - 1e-6)
    )
    assert sampled.token in reference([float(np.float32(x)) for x in logits], hair, {})


def test_a_flat_nucleus_over_a_large_vocabulary_is_exact() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20_000, generator=generator)
    kept = set(reference(logits.tolist(), SamplingParameters(top_p=0.9), {}))
    seen = draw(logits.tolist(), SamplingParameters(top_p=0.9), draws=30)
    assert set(seen) <= kept
    assert len(seen) > 25


def test_a_token_depends_on_its_own_row_seed_and_position_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 500, generator=generator)
    wild = SamplingParameters(temperature=1.2, top_p=0.95)
    rows = [SamplingRow(wild, seed, 40 + seed, {}) for seed in range(6)]
    together = Sampler().sample(logits.clone(), rows)
    sampler = Sampler()
    for index in (4, 2, 0, 5, 1, 3):
        assert sampler.sample(logits[index : index + 1].clone(), [rows[index]]) == [together[index]]


def test_seeds_and_positions_give_unrelated_draws() -> None:
    sampler = Sampler()
    draws = {(seed, position): sampler.uniform(seed, position) for seed in range(-5, 50) for position in range(50)}
    assert len(set(draws.values())) == len(draws)
    assert abs(sum(draws.values()) / len(draws) - 0.5) < 0.03
    assert sampler.uniform(3, 7) == draws[3, 7]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("parameters", [SamplingParameters(temperature=0.0), SamplingParameters(top_p=0.9)])
def test_a_row_that_is_not_finite_fails_alone(bad: float, parameters: SamplingParameters) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 2.0], [3.0, 1.0, 2.0]])
    rows = [SamplingRow(parameters, 1, 1, {}, logprobs=1) for _ in range(3)]
    sampled = Sampler().sample(logits, rows)
    assert [s is None for s in sampled] == [False, True, False]


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    logits = torch.tensor([LOGITS])
    expected = torch.log_softmax(logits[0], dim=0)
    parameters = SamplingParameters(temperature=0.3, logit_bias=((3, 100.0),), presence_penalty=1.0)
    (sampled,) = Sampler().sample(logits, [SamplingRow(parameters, 1, 1, {1: 1}, logprobs=3)])
    assert sampled is not None
    assert sampled.token == 3
    assert sampled.logprobs is not None
    assert sampled.logprobs.logprob == pytest.approx(float(expected[3]), abs=1e-5)
    assert [token for token, _ in sampled.logprobs.top] == [1, 6, 4]
    assert [value for _, value in sampled.logprobs.top] == pytest.approx(
        [float(expected[t]) for t in (1, 6, 4)], abs=1e-5
    )


def test_more_alternatives_than_tokens_report_all_tokens() -> None:
    row = SamplingRow(SamplingParameters(temperature=0.0), 1, 1, {}, logprobs=20)
    (sampled,) = Sampler().sample(torch.tensor([[0.0, 1.0]]), [row])
    assert sampled is not None
    assert sampled.logprobs is not None
    assert len(sampled.logprobs.top) == 2


def test_greedy_takes_the_first_of_equals() -> None:
    row = SamplingRow(SamplingParameters(temperature=0.0), 1, 1, {})
    (sampled,) = Sampler().sample(torch.tensor([[1.0, 5.0, 5.0]]), [row])
    assert sampled is not None
    assert sampled.token == 1


def test_top_p_zero_is_the_likeliest_token_alone() -> None:
    assert set(draw(LOGITS, SamplingParameters(top_p=0.0, temperature=2.0), draws=50)) == {1}


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    prompt, generated = [2, 0, 2, 7], {1: 3, 0: 1}
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, *generated]]), torch.tensor([LOGITS]))
    parameters = SamplingParameters(temperature=0.0, repetition_penalty=1.7)
    logits = torch.tensor([LOGITS])
    row = SamplingRow(parameters, 1, 1, generated, prompt_ids=np.unique(np.array(prompt)))
    (sampled,) = Sampler().sample(logits, [row])
    assert logits.tolist() == expected.tolist()
    assert sampled is not None
    assert sampled.token == int(expected.argmax())


@pytest.mark.parametrize("penalty", [5e-324, 1e-50, 1e-38, 0.01, 100.0, 1e38, 1e300])
@pytest.mark.parametrize(
    "parameters", [SamplingParameters(), SamplingParameters(top_p=0.9), SamplingParameters(top_k=3)]
)
def test_no_repetition_penalty_makes_scores_infinite(parameters: SamplingParameters, penalty: float) -> None:
    logits = torch.tensor([LOGITS, LOGITS])
    excluded = np.array([token == 3 for token in range(8)])
    row = SamplingRow(
        replace(parameters, repetition_penalty=penalty), 1, 1, {1: 3, 7: 1}, prompt_ids=np.array([1, 2, 3, 5])
    )
    plain, constrained = Sampler().sample(logits, [row, replace(row, forbidden=excluded)])
    assert bool(torch.isfinite(logits[0]).all())
    assert logits[1].isneginf().tolist() == excluded.tolist()
    assert plain is not None
    assert constrained is not None
    assert constrained.token != 3


def test_a_row_that_raises_is_reported_and_the_others_have_their_tokens() -> None:
    greedy = SamplingParameters(temperature=0.0)
    broken = replace(greedy, repetition_penalty=1.5)
    rows = [SamplingRow(greedy, 1, 1, {}), SamplingRow(broken, 1, 1, {-9: 1}), SamplingRow(greedy, 1, 1, {})]
    failed: list[tuple[int, type[Exception]]] = []
    sampled = Sampler().sample(
        torch.tensor([LOGITS] * 3), rows, failed=lambda index, error: failed.append((index, type(error)))
    )
    assert failed == [(1, IndexError)]
    assert [None if token is None else token.token for token in sampled] == [1, None, 1]
    with pytest.raises(IndexError):
        Sampler().sample(torch.tensor([LOGITS] * 3), rows)


def test_masked_tokens_are_never_drawn() -> None:
    for parameters in (SamplingParameters(temperature=0.0), SamplingParameters(temperature=5.0, top_p=0.99)):
        rows = [SamplingRow(parameters, 17, position, {}, masked=frozenset({1, 4, 6})) for position in range(200)]
        sampled = Sampler().sample(torch.tensor(LOGITS).repeat(200, 1), rows)
        assert not {token.token for token in sampled if token is not None} & {1, 4, 6}


def test_a_masked_token_is_drawn_where_the_grammar_leaves_no_other() -> None:
    logits = torch.zeros(2, 8)
    only_masked = np.array([token not in (1, 4) for token in range(8)])
    another = np.array([token not in (1, 4, 6) for token in range(8)])
    rows = [
        SamplingRow(SamplingParameters(), 17, 3, {}, masked=frozenset({1, 4, 9}), forbidden=forbidden)
        for forbidden in (only_masked, another)
    ]
    first, second = Sampler().sample(logits, rows)
    assert first is not None
    assert first.token in (1, 4)
    assert second is not None
    assert second.token == 6
