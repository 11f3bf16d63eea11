"""One choice's tokens, turned into pieces of text that may be shown: detokenised, cut at stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from languagepipes_node.end_model.requests import FinishReason, TokenLogprobs, TokenOutput
from languagepipes_node.end_model.text import StopStrings, TextCodec

_SCORED_A_PIECE = 32


class ScoredToken(NamedTuple):
    """A token with its log probabilities; `offset`: characters of the answer before it."""

    token: int
    logprobs: TokenLogprobs
    offset: int


class Piece(NamedTuple):
    """What one token adds to an answer: perhaps nothing yet. `finish` is set on the last piece."""

    text: str
    scored: Sequence[ScoredToken]
    finish: FinishReason | None

    @property
    def work(self) -> int:
        """What writing it costs, in microseconds or so."""
        return 8 + sum(8 + len(token.logprobs.top) for token in self.scored)

    def parts(self) -> Iterator[Piece]:
        """The same in pieces of a few scored tokens each: those that were held back may be a whole answer's."""
        if len(self.scored) <= _SCORED_A_PIECE:
            yield self
            return
        for first in range(0, len(self.scored), _SCORED_A_PIECE):
            last = first + _SCORED_A_PIECE >= len(self.scored)
            scored = self.scored[first : first + _SCORED_A_PIECE]
            yield Piece("" if first else self.text, scored, self.finish if last else None)


class Answer:
    """Assembles one choice. Feed it `TokenOutput`s until a piece has `finish`; then it takes no more."""

    __slots__ = ("_decoded", "_detokenizer", "_scored", "_shown", "_stops", "finish", "tokens")

    def __init__(self, codec: TextCodec, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._detokenizer = codec.detokenizer(prompt)
        self._stops = StopStrings(stops)
        self._scored: list[ScoredToken] = []  # not shown yet, since their text is held back
        self._decoded = 0  # characters detokenised
        self._shown = 0  # characters given out
        self.tokens = 0  # tokens generated, those that are not shown included
        self.finish: FinishReason | None = None

    def push(self, output: TokenOutput) -> Piece:
        """The piece that `output` completes."""
        self.tokens += 1
        finish = output.finish
        text = ""
        if finish != "stop":  # the stop token itself is not text
            if output.logprobs is not None:
                self._scored.append(ScoredToken(output.token, output.logprobs, self._decoded))
            text = self._detokenizer.push(output.token)
        if finish is not None:
            text += self._detokenizer.finish()
        self._decoded += len(text)
        shown, stopped = self._stops.push(text)
        if stopped:
            finish = "stop"
        elif finish is not None:
            shown += self._stops.finish()
        self._shown += len(shown)
        self.finish = finish
        return Piece(shown, self._release_scored(whole=finish is not None and not stopped), finish)

    def _release_scored(self, *, whole: bool) -> Sequence[ScoredToken]:
        """The tokens whose text has begun to be shown; all that remain where the answer ends of itself."""
        if not self._scored:
            return ()
        count = len(self._scored)
        if not whole:
            count = next((place for place, token in enumerate(self._scored) if token.offset >= self._shown), count)
        if not count:
            return ()
        released, self._scored = self._scored[:count], self._scored[count:]
        return released
