"""What is sampled from a frame's rows, and how drafts among them are verified.

A draft is right if it is the token that is sampled at its position, with the draw that belongs to that position: so an
answer is the same, token by token, as one without drafts. Positions are sampled one after the other, so that counts,
masks and a grammar are at each what they are without drafts, and nothing has to be taken back.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from languagepipes_node import metrics
from languagepipes_node.end_model.blocks import BlockLease
from languagepipes_node.end_model.sampling_rows import SampledToken
from languagepipes_node.end_model.sequences import Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Draws:
    """What is sampled for one sequence: its next token from row `row` of a frame's rows to sample from, and, as long as
    what is sampled is what was drafted, from the rows behind it. lease: the blocks that hold the drafts' KV."""

    sequence: Sequence
    lease: BlockLease
    row: int
    drafts: tuple[int, ...] = ()

    def is_right(self, place: int) -> bool:
        """Whether draft `place` is the token that was sampled last, and another is wanted."""
        sequence = self.sequence
        return place < len(self.drafts) and not sequence.ended and sequence.tokens[-1] == self.drafts[place]

    def is_damaged(self, logits: torch.Tensor) -> bool:
        """Whether it has drafts, and a row that is not finite. That may be the drafts' fault: attention reads what
        comes later in a frame, and what is left in a block, with a weight of zero. logits: [R, vocabulary], a row of
        which is finite as a whole or not at all."""
        first = logits[self.row : self.row + 1 + len(self.drafts), 0]
        return bool(self.drafts) and not bool(torch.isfinite(first).all())


def verify(
    drafted: list[Draws],
    *,
    sample: Callable[[list[Draws], int], list[SampledToken | None]],
    accept: Callable[[Draws, SampledToken | None], None],
) -> None:
    """Go on behind drafts whose first token has been sampled. sample: one token each, from the row so far behind the
    first. accept: takes what was sampled behind a draft that was right."""
    accepted, right = 0, drafted
    for place in range(max((len(draws.drafts) for draws in drafted), default=0)):
        right = [draws for draws in right if draws.is_right(place)]
        if not right:
            break
        try:
            sampled = sample(right, place + 1)
        except Exception as error:  # the tokens so far are facts; what follows them is computed again
            trace = "".join(traceback.format_tb(error.__traceback__))
            log.error("drafts could not be verified: %s in\n%s", type(error).__name__, trace)
            break
        accepted += len(right)
        for draws, token in zip(right, sampled, strict=True):
            accept(draws, token)
    metrics.DRAFTS.inc(len(drafted))
    metrics.DRAFTED_TOKENS.inc(sum(len(draws.drafts) for draws in drafted))
    metrics.ACCEPTED_TOKENS.inc(accepted)
