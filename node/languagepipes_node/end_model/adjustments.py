"""What a request makes of a row's scores before a token is drawn: grammar, bias, penalties and mask, in this order.

Penalties are OpenAI's: logit[t] - presence · (count[t] > 0) - frequency · count[t], counted over generated tokens; the
repetition penalty comes before them, as in vLLM.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from languagepipes_node.end_model.draws import Float32
from languagepipes_node.end_model.requests import SamplingParameters
from languagepipes_node.end_model.sampling_rows import SamplingRow

# Below every score but that of a token that cannot be drawn at all.
_LOWEST = float(np.finfo(np.float32).min)
_HIGHEST = float(np.finfo(np.float32).max)
# Of repetition: what float32 holds, and is not zero.
_LEAST_PENALTY, _MOST_PENALTY = 1e-30, 1e30
# A grammar that allows fewer tokens than one in so many is applied by writing those, not by reading all.
_FEW = 16


def adjusts(row: SamplingRow) -> bool:
    """Whether `adjust` changes anything."""
    parameters = row.parameters
    return bool(
        row.forbidden is not None
        or row.masked
        or parameters.logit_bias
        or parameters.repetition_penalty != 1.0
        or (row.counts and (parameters.presence_penalty or parameters.frequency_penalty))
    )


def adjust(scores: Float32, row: SamplingRow) -> None:
    """scores: [vocabulary], changed in place."""
    parameters = row.parameters
    if row.forbidden is not None:
        _forbid(scores, row.forbidden)
    if parameters.logit_bias:
        _add_bias(scores, parameters)
    if parameters.repetition_penalty != 1.0:
        _penalise_repetition(scores, row)
    if row.counts and (parameters.presence_penalty or parameters.frequency_penalty):
        tokens = np.fromiter(row.counts.keys(), np.int64, len(row.counts))
        counts = np.fromiter(row.counts.values(), np.float32, len(row.counts))
        scores[tokens] -= parameters.presence_penalty + parameters.frequency_penalty * counts
    masked = [token for token in row.masked if token < scores.shape[0]]
    if masked and (row.forbidden is None or _others_than(masked, row.forbidden)):
        scores[masked] = -np.inf


def _forbid(scores: Float32, forbidden: npt.NDArray[np.bool_]) -> None:
    known = forbidden.shape[0]
    allowed = known - np.count_nonzero(forbidden)
    if allowed * _FEW < known:
        places = np.flatnonzero(~forbidden)
        kept = scores[places]
        scores.fill(-np.inf)
        scores[places] = kept
        return
    np.copyto(scores[:known], -np.inf, where=forbidden)
    scores[known:] = -np.inf


def _add_bias(scores: Float32, parameters: SamplingParameters) -> None:
    tokens, values = parameters.biases
    inside = (tokens >= 0) & (tokens < scores.shape[0])
    np.add.at(scores, tokens[inside], values[inside])


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
