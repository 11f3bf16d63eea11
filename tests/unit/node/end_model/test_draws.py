"""Draws against a plain float64 reference: softmax, sort, cut, renormalise, and the token where the CDF passes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_node.end_model.draws import Bins, kth_bound, likeliest, sums_of_bins
from languagepipes_node.end_model.requests import SamplingParameters
from languagepipes_node.end_model.sampling import Sampler, SamplingRow

# Where float32 sums and the reference may disagree: on a draw this near to a boundary of the CDF, and on a token this
# near to the boundary of a nucleus.
HAIR = 2e-6


def kept_by(scores: np.ndarray, p: SamplingParameters, top_p: float) -> np.ndarray:
    """bool [vocabulary]."""
    weights = np.exp((scores - scores.max()) / p.temperature)
    order = np.lexsort((np.arange(len(scores)), -scores))
    if p.top_k:
        order = order[: p.top_k]
    if top_p < 1:
        cumulative = np.cumsum(weights[order])
        order = order[: int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1]
    order = order[weights[order] >= p.min_p]
    kept = np.zeros(len(scores), np.bool_)
    kept[order] = True
    return kept


def acceptable(logits: np.ndarray, p: SamplingParameters, draw: float) -> set[int]:
    """The reference's token; more than one where rounding may decide."""
    scores = logits.astype(np.float64)
    for token, bias in p.logit_bias:
        scores[token] += bias
    weights = np.exp((scores - scores.max()) / p.temperature)
    found = set()
    for top_p in {p.top_p, min(1.0, p.top_p + HAIR), max(1e-12, p.top_p - HAIR)} if p.top_p < 1 else {1.0}:
        kept = kept_by(scores, p, top_p)
        # The order of the CDF is part of what (seed, position) means: by bins if everything is kept, else by id.
        whole = not p.top_k and p.top_p >= 1 and p.min_p <= 0
        line = Bins.of(len(scores)).line
        tokens = np.arange(len(scores))
        order = np.lexsort((tokens, tokens % line)) if whole else tokens
        order = order[kept[order] & (weights[order] > 0)]
        cumulative = np.cumsum(weights[order]) / weights[order].sum()
        for near in (draw - HAIR, draw, draw + HAIR):
            found.add(int(order[min(np.searchsorted(cumulative, near, side="right"), len(order) - 1)]))
    return found


COMBINATIONS = [
    SamplingParameters(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.3, 1.0, 2.0), (0, 5, 3000), (1.0, 0.99, 0.6, 0.05), (0.0, 0.02, 1.0)
    )
]


def test_every_combination_draws_the_references_token_at_every_size() -> None:
    generator = np.random.default_rng(5)
    sampler = Sampler()
    for size in (1, 7, 61, 1000, 4097, 20_011):
        logits = (generator.standard_normal((len(COMBINATIONS), size)) * 2.5).astype(np.float32)
        rows = [SamplingRow(p, 11, position, {}) for position, p in enumerate(COMBINATIONS)]
        sampled = sampler.sample(torch.from_numpy(logits.copy()), rows)
        for row, own, token in zip(rows, logits, sampled, strict=True):
            assert token is not None
            assert token.token in acceptable(own, row.parameters, sampler.uniform(11, row.position)), (size, row)


@settings(max_examples=200, deadline=None)
@given(
    # Few values, so that many tokens are equal; multiples of 1/64, so that equals are equal in float32 too.
    logits=st.lists(st.integers(-24, 24).map(lambda n: n / 8), min_size=1, max_size=400),
    parameters=st.sampled_from(COMBINATIONS),
    seed=st.integers(0, 2**63),
    masked=st.sets(st.integers(0, 399)),
)
def test_ties_and_masks_are_those_of_the_reference(
    logits: list[float], parameters: SamplingParameters, seed: int, masked: set[int]
) -> None:
    masked = {token for token in masked if token < len(logits)}
    if len(masked) == len(logits):
        masked = set()
    sampler = Sampler()
    row = SamplingRow(parameters, seed, 3, {}, masked=frozenset(masked))
    (sampled,) = sampler.sample(torch.tensor([logits]), [row])
    assert sampled is not None
    own = np.array([-math.inf if token in masked else score for token, score in enumerate(logits)], np.float32)
    assert sampled.token in acceptable(own, parameters, sampler.uniform(seed, 3))


def test_what_top_p_keeps_ends_with_the_token_that_reaches_it() -> None:
    # Probabilities 0.5, 0.25, 0.125, 0.125: sums are exact, and the last two are equal.
    logits = torch.log(torch.tensor([0.125, 0.5, 0.125, 0.25]))
    for top_p, expected in ((0.5, {1}), (0.51, {1, 3}), (0.74, {1, 3}), (0.8, {1, 3, 0}), (0.9, {0, 1, 2, 3})):
        rows = [SamplingRow(SamplingParameters(top_p=top_p), 2, position, {}) for position in range(300)]
        sampled = Sampler().sample(logits.repeat(300, 1), rows)
        assert {token.token for token in sampled if token is not None} == expected, top_p


def test_top_p_counts_what_top_k_left_and_not_what_min_p_will_drop() -> None:
    # Of the three that top_k leaves, the first has 0.6 of the weight, the others 0.2 each.
    logits = torch.log(torch.tensor([0.6, 0.2, 0.2, 0.1]))
    parameters = SamplingParameters(top_k=3, top_p=0.7, min_p=0.3)
    rows = [SamplingRow(parameters, 2, position, {}) for position in range(300)]
    sampled = Sampler().sample(logits.repeat(300, 1), rows)
    assert {token.token for token in sampled if token is not None} == {0, 1}


def mixed_rows(count: int) -> list[SamplingRow]:
    kinds = [
        *COMBINATIONS[::5],
        SamplingParameters(temperature=0.0),
        SamplingParameters(logit_bias=((3, 4.0), (9, -100.0))),
        SamplingParameters(presence_penalty=1.0, repetition_penalty=1.3),
    ]
    rows = [SamplingRow(kinds[place % len(kinds)], place, 40 + place, {5: 1, 17: 2}) for place in range(count)]
    return [replace(row, logprobs=3) if row.position % 3 == 0 else row for row in rows]


@pytest.mark.parametrize(("count", "size"), [(40, 40_000), (70, 3_001), (5, 300_000)])
def test_company_and_threads_change_no_bit(count: int, size: int) -> None:
    logits = torch.randn(count, size, generator=torch.Generator().manual_seed(2)) * 2.5
    rows = mixed_rows(count)
    together = Sampler().sample(logits.clone(), rows)
    sampler = Sampler()
    for start in (0, count // 2, count - 1):
        for stop in (start + 1, min(start + 3, count)):
            part = sampler.sample(logits[start:stop].clone(), rows[start:stop])
            assert part == together[start:stop]
            assert [token and token.logprobs for token in part] == [
                token and token.logprobs for token in together[start:stop]
            ]


def test_weights_of_a_row_are_the_same_bits_in_any_company() -> None:
    bins = Bins.of(49_152)
    scores = np.random.default_rng(1).standard_normal((7, 49_152)).astype(np.float32)
    largest = scores.max(axis=1)
    temperatures = np.linspace(0.5, 1.5, 7).astype(np.float32)
    together = sums_of_bins(scores, largest, temperatures, bins, bins.empty(7, 0.0))
    for row in range(7):
        one = slice(row, row + 1)
        alone = sums_of_bins(scores[one], largest[one], temperatures[one], bins, bins.empty(1, 0.0))
        assert np.array_equal(alone[0], together[row])


def test_positions_of_one_sequence_may_share_a_step() -> None:
    """As a draft is verified: the draw of each position is the one that it would have had in a step of its own."""
    logits = torch.randn(5, 900, generator=torch.Generator().manual_seed(4))
    rows = [SamplingRow(SamplingParameters(top_p=0.95), 8, position, {}) for position in range(20, 25)]
    together = Sampler().sample(logits.clone(), rows)
    alone = [Sampler().sample(logits[place : place + 1].clone(), [row])[0] for place, row in enumerate(rows)]
    assert together == alone


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(),
        SamplingParameters(temperature=1.7),
        SamplingParameters(top_p=0.97),
        SamplingParameters(top_k=30),
    ],
    ids=str,
)
def test_draws_fit_the_distribution_by_chi_square(parameters: SamplingParameters) -> None:
    draws = 20_000
    logits = np.random.default_rng(9).standard_normal(60).astype(np.float32)
    rows = [SamplingRow(parameters, 1000 + place, 7, {}) for place in range(draws)]
    sampled = Sampler().sample(torch.from_numpy(logits).repeat(draws, 1), rows)
    seen = np.bincount([token.token for token in sampled if token is not None], minlength=60)
    kept = kept_by(logits.astype(np.float64), parameters, parameters.top_p)
    weights = np.where(kept, np.exp((logits - logits.max()) / parameters.temperature), 0.0)
    expected = weights / weights.sum() * draws
    assert not seen[~kept].any()
    statistic = float(((seen[kept] - expected[kept]) ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    # Wilson and Hilferty's bound, at five standard deviations.
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 5 * math.sqrt(spread)) ** 3


def test_draws_are_uniform_by_kolmogorov_and_smirnov() -> None:
    sampler = Sampler()
    draws = np.sort([sampler.uniform(seed, position) for seed in range(100) for position in range(200)])
    places = np.arange(len(draws))
    distance = max(np.abs(draws - places / len(draws)).max(), np.abs(draws - (places + 1) / len(draws)).max())
    assert distance < 2.3 / math.sqrt(len(draws))


def test_a_row_without_any_token_left_fails_alone() -> None:
    everything = frozenset(range(8))
    rows = [SamplingRow(SamplingParameters(), 1, position, {}) for position in range(3)]
    rows[1] = replace(rows[1], masked=everything)
    failed: list[tuple[int, str]] = []
    sampled = Sampler().sample(torch.zeros(3, 8), rows, failed=lambda row, error: failed.append((row, str(error))))
    assert [token is None for token in sampled] == [False, True, False]
    assert [row for row, _ in failed] == [1]


def test_the_likeliest_are_exact_whatever_their_number() -> None:
    scores = np.round(np.random.default_rng(3).standard_normal(9_001), 2).astype(np.float32)
    order = np.lexsort((np.arange(len(scores)), -scores))
    bins = Bins.of(len(scores))
    for count in (1, 5, 20, 63, 64, 65, 500, 9_000, 9_001):
        assert likeliest(scores, count, bins) == order[:count].tolist()
        assert kth_bound(scores, count, bins) <= scores[order[count - 1]]


def test_log_probabilities_are_computed_when_read_from_the_logits_as_they_were() -> None:
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(6))
    expected = torch.log_softmax(logits[0].double(), dim=0)
    parameters = SamplingParameters(temperature=0.0, logit_bias=((7, 100.0),))
    (sampled,) = Sampler().sample(logits, [SamplingRow(parameters, 1, 1, {}, logprobs=4)])
    assert sampled is not None
    assert "logprobs" not in vars(sampled)
    assert sampled.logprobs is not None
    assert sampled.logprobs.logprob == pytest.approx(float(expected[7]), abs=1e-6)
    best = expected.topk(4)
    assert [token for token, _ in sampled.logprobs.top] == best.indices.tolist()
    assert [value for _, value in sampled.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-6)
