"""What the sampler is asked for, and what it answers: one of each for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from languagepipes_node.end_model.draws import Float32, Int64
from languagepipes_node.end_model.logprobs import token_logprobs
from languagepipes_node.end_model.requests import SamplingParameters, TokenLogprobs


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
    """A row's token. scores: the row's raw logits [vocabulary], kept until its log probabilities are read; None if they
    are not asked for."""

    token: int
    scores: Float32 | None = field(default=None, compare=False, repr=False)
    alternatives: int = 0

    @cached_property
    def logprobs(self) -> TokenLogprobs | None:
        """Of the model's own distribution, before mask, penalties, bias and temperature. Worked out when read."""
        if self.scores is None:
            return None
        return token_logprobs(self.scores, self.token, self.alternatives)
