"""Plain data between the HTTP side and the engine: two queues, no shared state.

HTTP puts `Submission` and `Cancellation` on the engine's inbox; the engine hands back, once a step, one list of
`TokenOutput` and `Failure`. The engine knows token ids only; text, stop strings and JSON live on the HTTP side.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from languagepipes_node.end_model.structured import Grammar

# Of repetition_penalty. Values in use are 0.5 to 2; far beyond, all scores would be out of float32's range.
LEAST_REPETITION_PENALTY = 0.01
MOST_REPETITION_PENALTY = 100.0

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParameters:
    """How to pick a token. Names, ranges and defaults are the OpenAI API's; top_k (0: off) and min_p are vLLM's,
    and so are repetition_penalty (of tokens in prompt and answer; 1: off) and min_tokens (until then no stop token is
    sampled).

    temperature 0 is greedy. seed None: the engine draws one. Randomness is keyed by (seed, position), so a replayed
    step samples the same token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @cached_property
    def biases(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """logit_bias as arrays: token ids, and what is added to their logits."""
        tokens = np.array([operator.index(token) for token, _ in self.logit_bias], np.int64)
        return tokens, np.array([bias for _, bias in self.logit_bias], np.float32)


@dataclass(frozen=True)
class Submission:
    """One sequence to generate. prompt: token ids, at least one. stop_token_ids end it with "stop" (the stop token is
    the last TokenOutput's token and is not text). logprobs: how many alternatives to report, None for none at all.
    prompt_logprobs: the same for the prompt's tokens, which come as PromptScores before the first TokenOutput.
    client: who asks, for fairness: equal for one client's sequences, opaque, never logged. grammar: what its text must
    match, compiled; None for any text. priority: lower values start before higher ones, whoever asks. cache_domain:
    only sequences of one domain share the KV of equal beginnings; opaque, never logged.
    """

    request_id: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParameters
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    client: str = ""
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    priority: int = 0
    cache_domain: str = ""


@dataclass(frozen=True)
class Cancellation:
    """The client went away, or its text hit a stop string: compute for this request ends with the next step."""

    request_id: int


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities of the sampled token and of the most likely ones, as (token id, logprob).

    rank: of a prompt's token, how many tokens are as likely or likelier, itself included; None: not counted."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


@dataclass(frozen=True)
class TokenOutput:
    """One sampled token; `finish` is set on the sequence's last. ended_by_grammar: it ends with "stop" and is text,
    since nothing can follow it. cached_tokens: how many of the prompt's tokens were not computed for this sequence,
    since their KV was there."""

    request_id: int
    token: int
    finish: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    ended_by_grammar: bool = False
    cached_tokens: int = 0


@dataclass(frozen=True)
class PromptScores:
    """Log probabilities of the prompt's tokens from index `first` on, in order and without a gap: the first part begins
    at 1, since nothing comes before a prompt's first token, and the last ends with the prompt."""

    request_id: int
    first: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True)
class Failure:
    """The request ended without an answer. message: for the client."""

    request_id: int
    code: Literal["ring_down", "queue_full", "shutting_down", "internal"]
    message: str


EngineOutput = TokenOutput | PromptScores | Failure
EngineCommand = Submission | Cancellation


@dataclass
class EngineStatus:
    """What the HTTP side and health routes may read of the engine, replaced whole once a step (no locks).

    accepting: the ring is up, or its loss is within its bound: requests are taken, and may wait. recovering: the ring
    was up, is not, and is awaited. replays: sequences that were computed again, so far.
    """

    ring_ready: bool = False
    accepting: bool = False
    recovering: bool = False
    replays: int = 0
    ring_error: str = "the ring has not been joined yet"
    epoch: int = 0
    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
