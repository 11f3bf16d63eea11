"""Log probabilities of a sampled token and of the likeliest ones, worked out once somebody reads them.

They do not decide which token comes next, so the engine reads them after the next frame has left.
"""

from __future__ import annotations

import math

import numpy as np

from languagepipes_node.end_model.draws import Bins, Float32, likeliest, sums_of_bins, total_of
from languagepipes_node.end_model.requests import TokenLogprobs


def token_logprobs(scores: Float32, token: int, alternatives: int) -> TokenLogprobs:
    """scores: finite raw logits [vocabulary]. Natural logarithms; of equal alternatives the lower id comes first."""
    bins = Bins.of(scores.shape[0])
    largest = np.maximum.reduce(scores)
    sums = sums_of_bins(scores[None], largest[None], np.ones(1, np.float32), bins, bins.empty(1, 0.0))
    base = float(largest) + math.log(total_of(sums[0]))
    top = likeliest(scores, min(alternatives, scores.shape[0]), bins) if alternatives > 0 else ()
    return TokenLogprobs(float(scores[token]) - base, tuple((other, float(scores[other]) - base) for other in top))
