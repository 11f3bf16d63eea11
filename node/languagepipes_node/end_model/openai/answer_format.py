"""How a route writes an answer: as one object, or as server-sent events. `generation` asks for the parts of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from languagepipes_node.end_model.openai.answers import AnswerFinish, Piece, ScoredToken
from languagepipes_node.end_model.openai.errors import ApiError
from languagepipes_node.end_model.openai.response_models import Usage
from languagepipes_node.end_model.requests import PromptScores

Scored = TypeVar("Scored")


class AnswerFormat(ABC, Generic[Scored]):
    """One for each request. `opening`, `event`, `ending` and `failure` are for streams; `collect`, `whole_start`,
    `choice` and `whole_end` for what is sent as one object."""

    silence: ClassVar[bytes] = b": waiting for the next token\n\n"  # what a stream sends that was silent for long
    whole_start: bytes = b""
    cached_tokens: int = 0  # of the prompt, set before `opening` is asked for

    @abstractmethod
    def opening(self, index: int) -> bytes:
        """The first event of a choice, if the route has one."""

    @abstractmethod
    def event(self, index: int, piece: Piece) -> bytes:
        """The events for a piece; nothing for a piece that shows nothing and ends nothing."""

    def first_event(self, index: int) -> bytes:
        """`opening`, with token ids of the prompt if they are shown."""
        return self.opening(index)

    def events_of(self, index: int, piece: Piece, *, first: bool) -> bytes:
        """`event`, with token ids if they are shown. first: whether the choice had none before."""
        return self.event(index, piece)

    @abstractmethod
    def ending(self, usage: Usage) -> bytes:
        """The last events, once every choice has ended."""

    def endings(self, usage: Usage) -> Iterator[bytes]:
        """The same, in parts that may be sent one by one."""
        yield self.ending(usage)

    @abstractmethod
    def failure(self, error: ApiError) -> bytes:
        """The last events of a stream that fails."""

    def collect(self, index: int, piece: Piece) -> None:
        """Take note of a piece of an answer that is not streamed, where `choice` needs more of it than its text."""
        return

    def collect_scores(self, index: int, scores: PromptScores) -> Iterator[int]:
        """Take note of a prompt's log probabilities, a few at a time; yields what each time cost, in microseconds."""
        yield from ()

    @abstractmethod
    def scored(self, token: ScoredToken) -> Scored:
        """A token with its log probabilities, written as `choice` wants it."""

    @abstractmethod
    def choice(self, index: int, text: str, scored: Sequence[Scored], finish: AnswerFinish) -> Iterator[bytes]:
        """A choice of an answer that is not streamed, part by part."""

    def choice_with_ids(
        self,
        place: int,
        text: str,
        scored: Sequence[Scored],
        finish: AnswerFinish,
        *,
        index: int,
        tokens: Sequence[int],
    ) -> Iterator[bytes]:
        """`choice`, with token ids if they are shown. place: among those shown; index: among those generated."""
        return self.choice(place, text, scored, finish)

    @abstractmethod
    def whole_end(self, usage: Usage) -> bytes:
        """What follows the choices."""

    def whole_ends(self, usage: Usage) -> Iterator[bytes]:
        """The same, part by part."""
        yield self.whole_end(usage)
