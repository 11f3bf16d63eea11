"""One sequence: what was asked, what was sampled, what is computed, and which KV blocks it holds.

Token ids are kept for the sequence's whole life: sampled tokens are facts and never resampled, so a sequence
that lost its KV is recomputed from its tokens. This module decides nothing; the scheduler reads sequences,
the engine changes them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from languagepipes_node.end_model.blocks import BlockLease
from languagepipes_node.end_model.requests import FinishReason, SamplingParameters, Submission


@dataclass(eq=False)
class Sequence:
    """tokens: prompt and generated ids. sent: tokens of this session whose frame was sent (KV is written
    or on its way). returned: those whose frame has returned. in_flight: frames that name this sequence, of any
    session.

    arrival: a running number, so that order of arrival is total. last_step: the step that last held it (0:
    none). counts: how often each generated token occurred; kept only if a penalty needs it."""

    arrival: int
    request_id: int
    tokens: list[int]
    prompt_length: int
    token_limit: int
    sampling: SamplingParameters
    stop_token_ids: frozenset[int]
    logprobs: int | None
    seed: int
    sent: int = 0
    returned: int = 0
    in_flight: int = 0
    last_step: int = 0
    lease: BlockLease | None = None
    ended: bool = False
    counts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, submission: Submission, *, arrival: int, context_limit: int) -> Sequence:
        """A sequence at its start. context_limit: most tokens, prompt included, that the ring may hold of it.

        Raises ValueError naming the field if the submission cannot be served at all.
        """
        length = len(submission.prompt)
        if length < 1:
            raise ValueError("prompt=[]: at least one token is needed")
        if length >= context_limit:
            raise ValueError(f"prompt of {length} tokens: at most {context_limit - 1} leave room for an answer")
        if submission.max_tokens < 1:
            raise ValueError(f"max_tokens={submission.max_tokens}: at least 1 is needed")
        seed = submission.sampling.seed
        return cls(
            arrival=arrival,
            request_id=submission.request_id,
            tokens=list(submission.prompt),
            prompt_length=length,
            token_limit=min(length + submission.max_tokens, context_limit),
            sampling=submission.sampling,
            stop_token_ids=submission.stop_token_ids,
            logprobs=submission.logprobs,
            seed=secrets.randbits(63) if seed is None else seed,
        )

    @property
    def length(self) -> int:
        """Tokens known so far: prompt and generated."""
        return len(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens not sent yet. 0: the next token is being computed."""
        return len(self.tokens) - self.sent

    @property
    def blocks(self) -> int:
        """KV blocks held by this session."""
        return 0 if self.lease is None else self.lease.blocks

    @property
    def streaming(self) -> bool:
        """Its prompt is computed: it waits for its next token, and the client sees each delay."""
        return len(self.tokens) > self.prompt_length and self.remaining <= 1

    def accept(self, token: int) -> FinishReason | None:
        """Append a sampled token; the reason if it was the last."""
        self.tokens.append(token)
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            self.counts[token] = self.counts.get(token, 0) + 1
        if token in self.stop_token_ids:
            return "stop"
        if len(self.tokens) >= self.token_limit:
            return "length"
        return None

    def forget(self) -> None:
        """Start a new session: everything is to be computed again from the tokens."""
        self.sent = 0
        self.returned = 0
