"""An answer of thinking, content and calls: the thinking is split off first, the calls are read out of the rest."""

from __future__ import annotations

from languagepipes_node.end_model.reasoning.splitter import ThinkingSplitter
from languagepipes_node.end_model.tools.events import Event, Text
from languagepipes_node.end_model.tools.parser import AnswerReader


class ThinkingThenCalls:
    """What stands in thinking and looks like a call is thinking."""

    def __init__(self, splitter: ThinkingSplitter, parser: AnswerReader) -> None:
        self._splitter = splitter
        self._parser = parser

    @property
    def done(self) -> bool:
        return self._parser.done

    @property
    def thinking(self) -> bool:
        return self._splitter.thinking

    @property
    def broken(self) -> bool:
        return self._parser.broken

    def feed(self, text: str) -> list[Event]:
        return self._read(self._splitter.feed(text))

    def finish(self) -> list[Event]:
        return self._read(self._splitter.finish()) + self._parser.finish()

    def _read(self, events: list[Event]) -> list[Event]:
        read: list[Event] = []
        for event in events:
            read += self._parser.feed(event.text) if isinstance(event, Text) else [event]
        return read
