"""One sequence: what was asked, what was sampled, what is computed, and which KV blocks it holds.

Token ids are kept for the sequence's whole life: sampled tokens are facts and never resampled, so a sequence
that lost its KV is recomputed from its tokens. This module decides nothing; the scheduler reads sequences,
the engine changes them."""

from __future__ import annotations

import secrets
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from languagepipes_node.end_model.blocks import BlockLease
from languagepipes_node.end_model.recovery import Setbacks
from languagepipes_node.end_model.requests import FinishReason, SamplingParameters, Submission
from languagepipes_node.end_model.speculation import Speculator
from languagepipes_node.end_model.structured import GrammarState


@dataclass(eq=False)
class Sequence:
    """tokens: prompt and generated ids. sent: tokens of this session whose frame was sent (KV is written
    or on its way). kv: for each stage, of how many tokens it holds the KV for certain, since their frames have
    returned; never falling along the ring, since a stage computes from what those before it computed. in_flight: frames
    that name this sequence, of any session.

    arrival: a running number, so that order of arrival is total. client, priority: as in its Submission. passed: how
    many sequences were admitted before it although its turn was earlier; it did not fit then.
    last_step: the step that last held it (0: none). counts:
    how often each generated token occurred; kept only if a penalty needs it. setbacks: what lost epochs did to it.
    grammar: the place that `tokens` have reached in what its text must match; None if any text will do.
    speculator: drafts its next tokens; None if nobody wants to know.
    scored: with prompt_logprobs, how many of the prompt's tokens need no log probability any more: the first has none,
    and those of others were handed over.

    Of known blocks (`cached_blocks.py`): domain: within which its blocks may be shared. block_keys: of its first full
    blocks, as far as they were needed. known_blocks: how many of its blocks are known, or another block by their key.
    cached_tokens: of its prompt, that it did not have to compute when it first started; None before. While it waits,
    `sent` and `kv` are the tokens that it would not have to compute if it started now, and shared_blocks: how many of
    their blocks are in use by others, so that it needs none for them; computes: the key of the first full block that
    it would compute and could also have found, if there is one; follows: another one of its client that came earlier
    is computing that block."""

    arrival: int
    client: str
    request_id: int
    tokens: list[int]
    prompt_length: int
    token_limit: int
    sampling: SamplingParameters
    stop_token_ids: frozenset[int]
    logprobs: int | None
    seed: int
    kv: list[int]
    sent: int = 0
    in_flight: int = 0
    passed: int = 0
    last_step: int = 0
    setbacks: Setbacks = field(default_factory=Setbacks)
    lease: BlockLease | None = None
    ended: bool = False
    counts: dict[int, int] = field(default_factory=dict)
    prompt_logprobs: int | None = None
    scored: int = 1
    grammar: GrammarState | None = None
    speculator: Speculator | None = None
    priority: int = 0
    domain: str = ""
    block_keys: list[bytes] = field(default_factory=list)
    known_blocks: int = 0
    cached_tokens: int | None = None
    shared_blocks: int = 0
    computes: bytes | None = None
    follows: bool = False
    looked_up: int | None = None  # the version of the known blocks that the last three were worked out for

    @classmethod
    def of(
        cls, submission: Submission, *, arrival: int, context_limit: int, stages: int, speculates: bool = False
    ) -> Sequence:
        """A sequence at its start. context_limit: most tokens, prompt included, that the ring may hold of it. stages:
        of the ring. speculates: whether its next tokens are drafted.

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
            client=submission.client,
            request_id=submission.request_id,
            tokens=list(submission.prompt),
            prompt_length=length,
            token_limit=min(length + submission.max_tokens, context_limit),
            sampling=submission.sampling,
            stop_token_ids=submission.stop_token_ids,
            logprobs=submission.logprobs,
            seed=secrets.randbits(63) if seed is None else seed,
            kv=[0] * stages,
            prompt_logprobs=submission.prompt_logprobs,
            priority=submission.priority,
            domain=submission.cache_domain,
            speculator=Speculator() if speculates else None,
            grammar=None if submission.grammar is None else submission.grammar.start(submission.stop_token_ids),
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
    def sole_blocks(self) -> int:
        """KV blocks that nobody else holds: so many become free if it gives way."""
        return 0 if self.lease is None else self.lease.sole_blocks

    @property
    def reusable_tokens(self) -> int:
        """So many of its tokens need not be computed if their KV is there: of its last, and of those whose rows score
        its prompt, more than KV is wanted."""
        rows = self.length if self.prompt_logprobs is None else min(self.length, self.scored)
        return rows - 1

    @property
    def streaming(self) -> bool:
        """Its prompt is computed, and nothing is to be computed again: it waits for its next token, and the client sees
        each delay."""
        return len(self.tokens) > self.prompt_length and self.remaining <= 1

    @property
    def last_member(self) -> int:
        """The last stage, from 1, that has to compute the token at `sent`. Not the ring's last one: those after it hold
        its KV, and the frame is a replay."""
        held = bisect_right(self.kv, self.sent)
        return held or len(self.kv)

    @property
    def next_stop(self) -> int:
        """The next frame of this sequence ends here at the latest: where another stage begins to lack KV, or with the
        last token known."""
        held = bisect_right(self.kv, self.sent)
        return self.kv[held] if held < len(self.kv) else len(self.tokens)

    @property
    def replaying(self) -> bool:
        """Whether the token at `sent` was computed before, and some stage lost its KV."""
        return self.sent < self.kv[-1]

    @property
    def suspect(self) -> bool:
        """Whether it is tried apart, since it was in flight when the ring fell, again and again."""
        return self.setbacks.suspect

    @property
    def draft(self) -> tuple[int, ...]:
        """A draft of the tokens after the known ones, as far as they could be sampled and the rows behind them be of
        use: no stop token, nothing that the grammar excludes, and room for one more token."""
        if self.speculator is None:
            return ()
        required = tuple if self.grammar is None else self.grammar.forced
        return self.speculator.draft(self.tokens, self.token_limit - self.length - 1, self._possible, required)

    def _possible(self, draft: tuple[int, ...]) -> int:
        """How many of these tokens can follow."""
        stop = next((index for index, token in enumerate(draft) if token in self.stop_token_ids), len(draft))
        return stop if self.grammar is None else self.grammar.possible(draft[:stop])

    @property
    def acceptance(self) -> float:
        """How likely a draft is right if those before it are, 0 to 1."""
        return 0.0 if self.speculator is None else self.speculator.acceptance.share

    def accept(self, token: int) -> FinishReason | None:
        """Append a sampled token; the reason if it was the last. Raises GrammarExhausted."""
        self.tokens.append(token)
        if self.speculator is not None:
            self.speculator.sampled(token)
        self.setbacks.got_a_token()
        if self._counts_tokens:
            self.counts[token] = self.counts.get(token, 0) + 1
        if token in self.stop_token_ids:
            return "stop"
        if self.grammar is not None:
            self.grammar.accept(token)
            if self.grammar.is_over:
                return "stop"
        if len(self.tokens) >= self.token_limit:
            return "length"
        return None

    @property
    def _counts_tokens(self) -> bool:
        sampling = self.sampling
        return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0)

    @cached_property
    def prompt_ids(self) -> npt.NDArray[np.int64]:
        """The prompt's token ids, each once. Worked out only when asked for."""
        return np.unique(np.array(self.tokens[: self.prompt_length], np.int64))

    @property
    def masked_ids(self) -> frozenset[int]:
        """Tokens that must not be sampled now: those that would end it before its `min_tokens`."""
        if len(self.tokens) - self.prompt_length < self.sampling.min_tokens:
            return self.stop_token_ids
        return frozenset()

    def returned(self, stop: int, last_member: int) -> None:
        """A frame of its tokens up to `stop`, which stages 1 to `last_member` computed, has returned."""
        self.kv[:last_member] = [stop] * last_member
        self.setbacks.returned()

    def verified(self) -> None:
        """The token after those that were sent was drafted rightly, in a frame that has returned: all members hold its
        KV."""
        self.sent += 1
        self.kv = [self.sent] * len(self.kv)

    def rewind(self) -> None:
        """The epoch is over: what was in flight is sent again."""
        self.sent = self.kv[0]

    def lose_kv(self, stage: int) -> None:
        """Stage `stage`, from 1, lost its KV: it and those before it compute from the start."""
        self.kv[:stage] = [0] * stage
        self.sent = 0
        self.known_blocks = 0

    def begin_at(self, tokens: int) -> None:
        """A session, perhaps a later one, begins: all members hold the KV of the first `tokens` tokens."""
        self.sent = tokens
        self.kv = [tokens] * len(self.kv)
        self.known_blocks = 0
        self.looked_up = None

    def forget(self) -> None:
        """Start a new session: everything is to be computed again from the tokens."""
        self.begin_at(0)
        self.setbacks.suspect = False
