"""One choice's tokens, turned into what may be shown: detokenised, cut at stop strings, read for thinking and calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from languagepipes_node.end_model.requests import FinishReason, PromptScores, TokenLogprobs, TokenOutput
from languagepipes_node.end_model.text import StopStrings, TextCodec
from languagepipes_node.end_model.tools.events import CallBegin, Event, Text
from languagepipes_node.end_model.tools.parser import AnswerReader

AnswerFinish = FinishReason | Literal["tool_calls"]

_SCORED_A_PIECE = 32


class ScoredToken(NamedTuple):
    """A token with its log probabilities; `offset`: characters of the answer before it. None: a prompt's first token,
    which nothing comes before."""

    token: int
    logprobs: TokenLogprobs | None
    offset: int


@dataclass(frozen=True)
class Echo:
    """A prompt that is shown before its answer. scored: with log probabilities of its tokens, and of so many
    `alternatives` at most."""

    text: str
    scored: bool = False
    alternatives: int = 0


@dataclass(frozen=True)
class AnswerRules:
    """How an answer's tokens become its text, beside stop strings; names and meaning are vLLM's.

    include_stop: whether what ended the answer is shown. min_tokens: in which no stop string ends.
    special_stops: special tokens that are stop strings of this request, with their text. marks: characters that stand
    for special tokens in stop strings, and are never shown. show_scores: whether log probabilities are shown, if there
    are any. show_ids: whether token ids are. echo: the prompt, if it is shown first.
    silent: nothing is generated (`max_tokens` is 0): the one token that the engine samples is dropped.
    """

    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    special_stops: Mapping[int, str] = field(default_factory=dict)
    marks: Mapping[int, str] = field(default_factory=dict)
    show_scores: bool = True
    show_ids: bool = False
    echo: Echo | None = None
    silent: bool = False


_PLAIN = AnswerRules()


class Piece(NamedTuple):
    """What one token adds to an answer: perhaps nothing yet. `finish` is set on the last piece. events: what the text
    is, for an answer that is read; None: content. stopped_by: the stop string that ended it, if one did. tokens: it,
    where ids are shown."""

    text: str
    scored: Sequence[ScoredToken]
    finish: AnswerFinish | None
    events: Sequence[Event] | None = None
    stopped_by: str | None = None
    tokens: tuple[int, ...] = ()

    @property
    def shown(self) -> Sequence[Event]:
        """What it adds, as events in any case."""
        if self.events is not None:
            return self.events
        return (Text(self.text),) if self.text else ()

    @property
    def work(self) -> int:
        """What writing it costs, in microseconds or so."""
        scores = sum(8 + len(token.logprobs.top) for token in self.scored if token.logprobs is not None)
        return 8 + scores + 8 * len(self.events or ())

    def parts(self) -> Iterator[Piece]:
        """The same in pieces of a few scored tokens each: those that were held back may be a whole answer's."""
        if len(self.scored) <= _SCORED_A_PIECE:
            yield self
            return
        for first in range(0, len(self.scored), _SCORED_A_PIECE):
            last = first + _SCORED_A_PIECE >= len(self.scored)
            scored = self.scored[first : first + _SCORED_A_PIECE]
            finish = self.finish if last else None
            if first:
                yield Piece("", scored, finish, self.events and (), self.stopped_by)
            else:
                yield Piece(self.text, scored, finish, self.events, self.stopped_by, self.tokens)


class EchoedPrompt:
    """A prompt's tokens, told where each begins in the prompt's text."""

    def __init__(self, codec: TextCodec, prompt: Sequence[int], echo: Echo) -> None:
        self.scored = echo.scored
        self.unscored = echo.scored  # and nothing of it was shown
        self._alternatives = echo.alternatives
        self._codec = codec
        self._prompt = prompt
        self._text = echo.text
        self._detokenizer = codec.detokenizer(())
        self._offset = 0  # where the next token begins
        self._shown = 0  # characters given out

    def rest(self) -> str:
        """What of the text was not given out yet."""
        rest, self._shown = self._text[self._shown :], len(self._text)
        return rest

    def begin(self) -> list[ScoredToken]:
        """The first token, which has no score."""
        self.unscored = False
        return [self._place(self._prompt[0], None)]

    def pieces(self, scores: PromptScores) -> Iterator[Piece]:
        """The text that these tokens begin in, and their scores; with the first one, the prompt's first token too."""
        scored = self.begin() if self.unscored else []
        for number, logprobs in enumerate(scores.logprobs, start=scores.first):
            if len(logprobs.top) > self._alternatives:
                logprobs = replace(logprobs, top=logprobs.top[: self._alternatives])
            scored.append(self._place(self._prompt[number], logprobs))
            if len(scored) >= _SCORED_A_PIECE:
                yield self._piece(scored)
                scored = []
        if scores.first + len(scores.logprobs) == len(self._prompt):
            yield Piece(self.rest(), scored, None)
        elif scored:
            yield self._piece(scored)

    def _piece(self, scored: Sequence[ScoredToken]) -> Piece:
        text, self._shown = self._text[self._shown : self._offset], self._offset
        return Piece(text, scored, None)

    def _place(self, token: int, logprobs: TokenLogprobs | None) -> ScoredToken:
        offset = self._offset
        text = self._detokenizer.push(token)
        if not text and self._codec.is_special(token):
            # In the text if the client wrote it out, and not if the tokenizer added it.
            written = self._codec.token_bytes(token).decode(errors="replace")
            text = written if self._text.startswith(written, offset) else ""
        self._offset = min(offset + len(text), len(self._text))
        return ScoredToken(token, logprobs, offset)


class Answer:
    """Assembles one choice. Feed it what the engine reports until `finish` is set; then it takes no more.

    With `rules.echo` the prompt's text comes first: with the prompt's own scores, if there are any, or before the first
    token's. reader: tells thinking, content and calls apart; None: all is content. special: special
    tokens whose text it needs.
    """

    __slots__ = (
        "_called", "_codec", "_decoded", "_detokenizer", "_echo", "_reader", "_rules", "_scored", "_shown", "_special",
        "_stops", "_total_logprob", "_unread", "_was_thinking", "cached_tokens", "finish", "reasoning_tokens", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        codec: TextCodec,
        prompt: Sequence[int],
        stops: Sequence[str],
        rules: AnswerRules = _PLAIN,
        reader: AnswerReader | None = None,
        special: frozenset[int] = frozenset(),
    ) -> None:
        self._detokenizer = codec.detokenizer(
            prompt, special - rules.marks.keys(), skip_special_tokens=rules.skip_special_tokens
        )
        self._stops = StopStrings(stops, include=rules.include_stop)
        self._rules = rules
        self._codec = codec
        self._reader = reader
        self._special = special
        self._called = False
        self._unread: deque[int] = deque()  # where each token ends that was not read whole, in characters
        self._was_thinking = reader is not None and reader.thinking  # at the end of the last that was
        self._echo = EchoedPrompt(codec, prompt, rules.echo) if rules.echo is not None else None
        self._scored: list[ScoredToken] = []  # not shown yet, since their text is held back
        self._decoded = 0 if rules.echo is None else len(rules.echo.text)  # characters detokenised
        self._shown = self._decoded  # characters given out
        self._total_logprob = 0.0
        self.tokens = 0  # tokens generated, those that are not shown included
        self.reasoning_tokens = 0  # of those
        self.cached_tokens = 0  # of the prompt's, that were not computed
        self.finish: AnswerFinish | None = None

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, where the engine reports log probabilities."""
        return self._total_logprob / max(1, self.tokens)

    def pieces(self, output: TokenOutput | PromptScores) -> Iterator[Piece]:
        """What `output` adds, in pieces of a few scored tokens each: at least one for a token."""
        if isinstance(output, TokenOutput):
            yield from self.push(output).parts()
        elif self._echo is not None and self._echo.scored:
            yield from self._echo.pieces(output)

    def push(self, output: TokenOutput) -> Piece:
        """The piece that `output` completes."""
        echoed = "" if self._echo is None else self._echo.rest()
        if self._echo is not None and self._echo.unscored:
            self._scored += self._echo.begin()
        self.cached_tokens = output.cached_tokens
        if self._rules.silent:
            self.finish = "length"
            return Piece(echoed, self._scored, self.finish)
        self.tokens += 1
        rules = self._rules
        finish: AnswerFinish | None = output.finish
        text = ""
        if output.logprobs is not None:
            self._total_logprob += output.logprobs.logprob
        # Otherwise the stop token itself is not text.
        if finish != "stop" or output.ended_by_grammar or rules.include_stop:
            if output.logprobs is not None and rules.show_scores:
                self._scored.append(ScoredToken(output.token, output.logprobs, self._decoded))
            text = self._detokenizer.push(output.token)
            if finish == "stop" and not text:
                text = rules.special_stops.get(output.token, "")
            if not text and output.token in rules.marks:
                text = self._detokenizer.finish() + rules.marks[output.token]
        if finish is not None:
            text += self._detokenizer.finish()
        self._decoded += len(self._without_marks(text))
        if self._reader is not None:
            self._unread.append(self._decoded)
        shown, stopped = self._stops.push(text, may_end=self.tokens > rules.min_tokens)
        if stopped:
            finish = "stop"
        elif finish is not None:
            shown += self._stops.finish()
        shown = self._without_marks(shown, stop=stopped)
        self._shown += len(shown)
        scored = self._release_scored(whole=finish is not None and not stopped)
        events: list[Event] | None = None
        if self._reader is not None:
            events, finish = self._read(self._reader, shown, finish)
        self.finish = finish
        tokens = (output.token,) if rules.show_ids else ()
        return Piece(echoed + shown, scored, finish, events, self._stopped_by(output), tokens)

    def _stopped_by(self, output: TokenOutput) -> str | None:
        if (matched := self._stops.matched) is not None:
            for token, mark in self._rules.marks.items():
                matched = matched.replace(mark, self._codec.spellings([token])[0])
            return matched
        return self._rules.special_stops.get(output.token) if output.finish == "stop" else None

    def _without_marks(self, text: str, *, stop: bool = False) -> str:
        """stop: `text` ends with a stop string, whose special tokens are shown if it is."""
        for token, mark in self._rules.marks.items():
            if mark in text:
                shown = token in self._special or (stop and self._rules.include_stop)
                text = text.replace(mark, self._codec.spellings([token])[0] if shown else "")
        return text

    def _read(
        self, reader: AnswerReader, text: str, finish: AnswerFinish | None
    ) -> tuple[list[Event], AnswerFinish | None]:
        """What the text is, and how the answer ends if it does."""
        events: list[Event] = []
        place = self._shown - len(text)
        while self._unread and (finish is not None or self._unread[0] <= self._shown):
            end = self._unread.popleft()
            part = text[: max(0, end - place)] if self._unread or finish is None else text
            text, place = text[len(part) :], end
            events += reader.feed(part)
            if self._was_thinking or reader.thinking:
                self.reasoning_tokens += 1
            self._was_thinking = reader.thinking
            if reader.done:
                break
        if text and not reader.done:
            events += reader.feed(text)  # the beginning of a token's, of which the rest is held back
        if reader.done:
            finish = "stop"
        if finish is not None:
            events += reader.finish()
        self._called = self._called or any(isinstance(event, CallBegin) for event in events)
        return events, "tool_calls" if finish == "stop" and self._called and not reader.broken else finish

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
