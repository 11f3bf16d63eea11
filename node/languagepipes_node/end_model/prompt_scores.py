"""Log probabilities of prompts' tokens: which rows of a frame they need, and what those rows say.

The row at position p of a prompt scores its token p + 1. A prompt's last row is not one of these: it is sampled from.
Logits are of the size of the vocabulary, so they are computed and forgotten a few rows at a time, however long the
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from languagepipes_node.end_model.requests import PromptScores, TokenLogprobs
from languagepipes_node.end_model.scheduler import Share
from languagepipes_node.end_model.sequences import Sequence as TokenSequence

# 32 MiB of logits with a vocabulary of 256k.
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class ScoringRows:
    """The rows `[row, row + count)` of a frame's wanted rows score tokens `[first, first + count)` of a prompt."""

    sequence: TokenSequence
    first: int
    row: int
    count: int


def scoring_rows(shares: Sequence[Share[TokenSequence]]) -> tuple[ScoringRows, ...]:
    """What a frame of these shares scores: the prompt tokens that no earlier frame has scored."""
    if all(share.sequence.prompt_logprobs is None for share in shares):
        return ()
    found: list[ScoringRows] = []
    row = 0
    for share in shares:
        first, stop = _scored_positions(share)
        if stop > first:
            found.append(ScoringRows(share.sequence, first + 1, row, stop - first))
            row += stop - first
        row += share.rows
    return tuple(found)


def wanted_rows(shares: Sequence[Share[TokenSequence]]) -> npt.NDArray[np.int32]:
    """int32 [R], ascending indices into the packed tokens: rows to sample from, and those of `scoring_rows`."""
    return np.fromiter(_wanted(shares), np.int32)


def _wanted(shares: Sequence[Share[TokenSequence]]) -> Iterator[int]:
    begin = 0
    for share in shares:
        first, stop = _scored_positions(share)
        yield from range(begin + first - share.start, begin + stop - share.start)
        begin += share.count
        yield from range(begin - share.rows, begin)


def _scored_positions(share: Share[TokenSequence]) -> tuple[int, int]:
    """Positions of the share whose rows score a token; none: an empty range inside the share."""
    sequence = share.sequence
    if sequence.prompt_logprobs is None:
        return share.start, share.start
    first = max(share.start, sequence.scored - 1)
    return first, max(first, min(share.known_stop, sequence.prompt_length - 1))


def score_prompts(
    scoring: Sequence[ScoringRows], rows: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[list[tuple[TokenSequence, PromptScores | None]], torch.Tensor]:
    """(what a frame's rows [R, hidden] say of prompts' tokens, None where they are not finite; the other rows).

    Sequences that have ended are left out; of the others it is noted how far they are scored.
    """
    found: list[tuple[TokenSequence, PromptScores | None]] = []
    others = torch.ones(len(rows), dtype=torch.bool)
    for part in scoring:
        sequence, stop = part.sequence, part.first + part.count
        others[part.row : part.row + part.count] = False
        if sequence.ended or sequence.prompt_logprobs is None:
            continue
        logprobs = score(
            logits_of,
            rows[part.row : part.row + part.count],
            sequence.tokens[part.first : stop],
            alternatives=sequence.prompt_logprobs,
        )
        if logprobs is None:
            found.append((sequence, None))
            continue
        sequence.scored = stop
        found.append((sequence, PromptScores(sequence.request_id, part.first, logprobs)))
    return found, rows[others.to(rows.device)]


def score(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    tokens: Sequence[int],
    *,
    alternatives: int,
) -> tuple[TokenLogprobs, ...] | None:
    """Each of `tokens` by the row before it. rows: [n, hidden]; logits_of: those of [m, hidden], float32
    [m, vocabulary]; alternatives: how many of the likeliest tokens to report. None: a row is not finite.
    """
    found: list[TokenLogprobs] = []
    for begin in range(0, len(tokens), _ROWS_AT_ONCE):
        logits = logits_of(rows[begin : begin + _ROWS_AT_ONCE])  # [m, vocabulary]
        if not bool(torch.isfinite(logits.sum())):
            return None
        targets = torch.tensor(tokens[begin : begin + _ROWS_AT_ONCE], device=logits.device)
        logprobs = torch.log_softmax(logits, dim=1)
        own = logprobs.gather(1, targets[:, None])  # [m, 1]
        ranks = (logprobs >= own).sum(dim=1).tolist()
        best = logprobs.topk(min(alternatives, logprobs.shape[1]), dim=1)
        for logprob, rank, top, values in zip(
            own[:, 0].tolist(), ranks, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            found.append(TokenLogprobs(logprob, tuple(zip(top, values, strict=True)), rank))
    return tuple(found)
