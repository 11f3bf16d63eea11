"""From logits to tokens, all rows of a frame at once.

The order is grammar, bias, penalties, mask → temperature → top_k → top_p → min_p → one draw. Randomness comes from a
counter-based generator keyed by (seed, position), so a token depends on its own row alone: not on who shares
the batch, nor on when or how often the step is run. Greedy rows cost one argmax.

Penalties are OpenAI's: logit[t] - presence · (count[t] > 0) - frequency · count[t], counted over generated
tokens. Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), as numpy implements
it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from languagepipes_node.end_model.requests import SamplingParameters, TokenLogprobs

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# For top_p: how many of the likeliest tokens are looked at before the whole vocabulary is sorted.
_LIKELIEST = (128, 2048, 16384)
_ROUNDING = 1e-6
# Cumulative sums go block by block: one block's total first, then only inside the block that was hit.
_SUM_BLOCK = 256
# Below every score but that of a token that cannot be drawn at all.
_LOWEST = float(np.finfo(np.float32).min)
_HIGHEST = float(np.finfo(np.float32).max)
# Of repetition: what float32 holds, and is not zero.
_LEAST_PENALTY, _MOST_PENALTY = 1e-30, 1e30


@dataclass(frozen=True)
class SamplingRow:
    """What one row is sampled with. position: the new token's index in its sequence. counts: how often each
    token was generated, read only with penalties. logprobs: alternatives to report, None for none at all. prompt_ids:
    int64, the prompt's tokens, each once, ascending; needed only with a repetition penalty. masked: tokens that must
    not be drawn, unless the grammar leaves no others. forbidden: bool [known ids], True for tokens that the grammar
    excludes, as are ids beyond; None without a grammar."""

    parameters: SamplingParameters
    seed: int
    position: int
    counts: Mapping[int, int]
    logprobs: int | None = None
    prompt_ids: Int64 | None = None
    masked: frozenset[int] = frozenset()
    forbidden: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class SampledToken:
    """A row's token. Logprobs are of the model's own distribution, before mask, penalties, bias and temperature."""

    token: int
    logprobs: TokenLogprobs | None = None


class Sampler:
    """Keeps one random generator to reuse; no state passes from one call to the next."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0, counter=0)
        self._fresh = self._philox.state

    def sample(
        self,
        logits: torch.Tensor,
        rows: Sequence[SamplingRow],
        failed: Callable[[int, Exception], None] | None = None,
    ) -> list[SampledToken | None]:
        """logits: float32 [R, vocabulary], changed in place where a row asks for it; rows: R. failed: told of a row
        at which something was raised; without it, that is raised. None: the row is not finite, or failed."""
        scores: Float32 = logits.detach().to("cpu", torch.float32).contiguous().numpy()
        # One pass finds any NaN or infinity: sums of finite logits are finite.
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(torch.from_numpy(scores).sum(dim=1).numpy())
        reports: dict[int, Float32 | None] = {}
        for index in np.flatnonzero(finite).tolist():
            row = rows[index]
            with _alone(index, failed):
                report = _logprobs_of(scores[index]) if row.logprobs is not None else None
                _adjust(scores[index], row)
                reports[index] = report
        greedy = scores.argmax(axis=1)  # [R]; numpy's is ten times faster than torch's on a CPU
        results: list[SampledToken | None] = [None] * len(rows)
        for index, report in reports.items():
            row = rows[index]
            with _alone(index, failed):
                token = int(greedy[index])
                if row.parameters.temperature > 0:
                    token = self._draw(scores[index], row, most_likely=token)
                results[index] = SampledToken(token, _report(report, token, row.logprobs))
        return results

    def uniform(self, seed: int, position: int) -> float:
        """The one draw in [0, 1) that belongs to (seed, position)."""
        state = self._fresh
        state["state"]["key"][0] = seed % 2**64
        state["state"]["counter"][0] = position
        self._philox.state = state
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53

    def _draw(self, scores: Float32, row: SamplingRow, *, most_likely: int) -> int:
        """One token from the truncated distribution of `scores` [vocabulary]."""
        parameters = row.parameters
        if parameters.top_k == 1 or parameters.top_p <= 0:
            return most_likely
        # The largest becomes 0, so that no temperature, however small, overflows upwards.
        scaled = (scores - scores[most_likely]) / np.float32(max(parameters.temperature, 1e-30))
        u = self.uniform(row.seed, row.position)
        if parameters.top_k <= 0 and parameters.top_p >= 1.0 and parameters.min_p <= 0.0:
            return _inverse_cdf(np.exp(scaled), u)
        tokens, weights = _truncate(scaled, parameters)
        cumulative = np.cumsum(weights)
        return int(tokens[min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(tokens) - 1)])


@contextlib.contextmanager
def _alone(index: int, failed: Callable[[int, Exception], None] | None) -> Iterator[None]:
    """Rows do not depend on each other: what is raised at row `index` is reported of it."""
    try:
        yield
    except Exception as error:
        if failed is None:
            raise
        failed(index, error)


def _adjust(scores: Float32, row: SamplingRow) -> None:
    """Grammar, bias, penalties and mask, in place."""
    parameters = row.parameters
    if row.forbidden is not None:
        known = row.forbidden.shape[0]
        np.copyto(scores[:known], -np.inf, where=row.forbidden)
        scores[known:] = -np.inf
    for token, bias in parameters.logit_bias:
        if 0 <= token < scores.shape[0]:
            scores[token] += bias
    if parameters.repetition_penalty != 1.0:
        _penalise_repetition(scores, row)
    if row.counts and (parameters.presence_penalty or parameters.frequency_penalty):
        tokens = np.fromiter(row.counts.keys(), np.int64, len(row.counts))
        counts = np.fromiter(row.counts.values(), np.float32, len(row.counts))
        scores[tokens] -= parameters.presence_penalty + parameters.frequency_penalty * counts
    masked = [token for token in row.masked if token < scores.shape[0]]
    if masked and (row.forbidden is None or _others_than(masked, row.forbidden)):
        scores[masked] = -np.inf


def _others_than(masked: list[int], forbidden: npt.NDArray[np.bool_]) -> bool:
    """Whether the grammar allows a token that is not masked."""
    allowed = forbidden.shape[0] - np.count_nonzero(forbidden)
    return bool(allowed > sum(not forbidden[token] for token in masked if token < forbidden.shape[0]))


def _penalise_repetition(scores: Float32, row: SamplingRow) -> None:
    """Makes each token of prompt and answer less likely, once: CTRL's formula (Keskar et al., 2019) as transformers and
    vLLM have it, a positive logit divided and a negative one multiplied. What was finite remains so."""
    seen = np.fromiter(row.counts.keys(), np.int64, len(row.counts))
    if row.prompt_ids is not None and len(row.prompt_ids):
        places = np.minimum(np.searchsorted(row.prompt_ids, seen), len(row.prompt_ids) - 1)
        seen = np.concatenate([row.prompt_ids, seen[row.prompt_ids[places] != seen]])
    seen = seen[seen < scores.shape[0]]
    penalty = np.float32(min(max(row.parameters.repetition_penalty, _LEAST_PENALTY), _MOST_PENALTY))
    own = scores[seen]
    with np.errstate(over="ignore"):
        penalised = np.where(own > 0, own / penalty, own * penalty)
    # What the grammar excludes stays at minus infinity.
    scores[seen] = np.where(np.isfinite(own), np.clip(penalised, _LOWEST, _HIGHEST), own)


def _truncate(scaled: Float32, parameters: SamplingParameters) -> tuple[Int64, Float64]:
    """scaled: [vocabulary], largest 0. The tokens that top_k, top_p and min_p leave, likeliest first, ties by
    id, with weights in proportion to their probabilities."""
    # top_p counts what top_k left; without top_k, the whole vocabulary.
    total = float(np.exp(scaled).sum(dtype=np.float64)) if parameters.top_k <= 0 else None
    floor = _floor(scaled, parameters, total)
    tokens = np.flatnonzero(scaled >= np.float32(floor))
    tokens = tokens[np.argsort(-scaled[tokens], kind="stable")]
    if parameters.top_k > 0:
        tokens = tokens[: parameters.top_k]
    weights: Float64 = np.exp(scaled[tokens].astype(np.float64))
    keep = len(tokens)
    if parameters.top_p < 1.0:
        cumulative = np.cumsum(weights)
        # The shortest prefix whose probability reaches top_p.
        reach = parameters.top_p * (cumulative[-1] if total is None else total)
        keep = min(keep, int(np.searchsorted(cumulative, reach, side="left")) + 1)
    if parameters.min_p > 0.0:
        keep = min(keep, max(1, int(np.count_nonzero(weights >= parameters.min_p))))
    return tokens[:keep], weights[:keep]


def _floor(scaled: Float32, parameters: SamplingParameters, total: float | None) -> float:
    """A score below which the truncation keeps nothing, so that only a few tokens are ever sorted."""
    size = scaled.shape[0]
    # A little below the exact bounds: the comparisons that decide are made in float64 on what is left.
    floor = math.log(min(1.0, parameters.min_p)) - 1e-4 if parameters.min_p > 0.0 else _LOWEST
    if total is None:
        if parameters.top_k < size:
            floor = max(floor, float(torch.from_numpy(scaled).topk(parameters.top_k).values[-1]))
    elif parameters.top_p < 1.0:
        for most in _LIKELIEST:
            if most >= size:
                break
            likeliest = torch.from_numpy(scaled).topk(most).values.numpy().astype(np.float64)
            if float(np.exp(likeliest).sum()) >= (parameters.top_p + _ROUNDING) * total:
                return max(floor, float(likeliest[-1]))
    return floor


def _inverse_cdf(weights: Float32, u: float) -> int:
    """The token at which the running sum of `weights` passes u of their total."""
    size = weights.shape[0]
    blocks = np.add.reduceat(weights, np.arange(0, size, _SUM_BLOCK), dtype=np.float64)
    sums = np.cumsum(blocks)
    target = u * sums[-1]
    # Not beyond the last block that holds anything.
    block = min(int(np.searchsorted(sums, target, side="right")), int(np.searchsorted(sums, sums[-1], side="left")))
    before = sums[block - 1] if block else 0.0
    start = block * _SUM_BLOCK
    inside = np.cumsum(weights[start : start + _SUM_BLOCK], dtype=np.float64)
    token = start + int(np.searchsorted(inside, target - before, side="right"))
    if token < min(start + _SUM_BLOCK, size):
        return token
    # Rounding put the target past the block's end: its last token that can be drawn at all.
    return start + int(np.flatnonzero(weights[start : start + _SUM_BLOCK])[-1])


def _logprobs_of(scores: Float32) -> Float32:
    """Natural-log probabilities [vocabulary] of raw logits."""
    shifted = scores - scores.max()
    total = float(np.exp(shifted).sum(dtype=np.float64))
    logprobs: Float32 = shifted - np.float32(math.log(total))
    return logprobs


def _report(logprobs: Float32 | None, token: int, alternatives: int | None) -> TokenLogprobs | None:
    if logprobs is None or alternatives is None:
        return None
    top: tuple[tuple[int, float], ...] = ()
    if alternatives > 0:
        best = torch.from_numpy(logprobs).topk(min(alternatives, logprobs.shape[0]))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprobs(float(logprobs[token]), top)
