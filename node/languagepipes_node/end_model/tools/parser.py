"""Reading calls of tools out of an answer that comes in pieces: what all formats have in common.

A call is given out when it is complete and names one of the request's tools. What looks like a call and is none is
content, as it stands; nothing is lost, and nothing is raised.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, Protocol

from languagepipes_node.end_model.text.stop_strings import tail_to_keep
from languagepipes_node.end_model.tools import json_text
from languagepipes_node.end_model.tools.arguments import MAX_CALLS, check
from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Event, Text
from languagepipes_node.end_model.tools.source import Ended, Malformed, Source

# Each tool's parameters (JSON Schema), by the tool's name.
Tools = Mapping[str, Mapping[str, Any]]


class AnswerReader(Protocol):
    """Text in pieces to events. The events, joined by kind, are the same however the text is cut."""

    @property
    def done(self) -> bool:
        """Whether nothing that follows is to be shown."""
        ...

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends within thinking."""
        ...

    def feed(self, text: str) -> list[Event]:
        """What `text` completes."""
        ...

    def finish(self) -> list[Event]:
        """What was held back, at the end of the answer."""
        ...


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class ToolParser(ABC):
    """A family's format. Subclasses say what a call begins with, and read it.

    tools: those that may be called. single: the answer ends with the first call; else it
    ends with as many as a message may hold.
    """

    starts: ClassVar[tuple[str, ...]]  # a call begins with one of these
    markers: ClassVar[tuple[str, ...]] = ()  # further texts that may be special tokens, which must be seen
    thinking: ClassVar[bool] = False

    def __init__(self, tools: Tools, *, single: bool = False) -> None:
        self.done = False
        self.tools = tools
        self._single = single
        self.source = Source()
        self._events: list[Event] = []
        self._blank = ""  # white space that is content only if content follows
        self._called = 0
        self._given_out = False  # a call, by the reading that goes on
        self._reading = self._read()

    def feed(self, text: str) -> list[Event]:
        if text and not self.done:
            self.source.text += text
            next(self._reading, None)
        return self._take()

    def finish(self) -> list[Event]:
        self.source.ended = True
        if not self.done:
            next(self._reading, None)
            if self._blank and not self._called:
                self._events.append(Text(self._blank))
            self.done = True
        return self._take()

    @abstractmethod
    def calls(self) -> Generator[None, None, None]:
        """Read one or more calls, from the start marker on, and hand each to `call`. Raises Malformed."""

    def opening(self) -> Generator[None, None, None]:
        """Read what may be a call at the very beginning only. Raises Malformed."""
        yield from ()

    def new_id(self) -> str:
        return call_id()

    def checked(self, name: Any, arguments: str) -> tuple[str, str]:
        """The same, if it calls one of the tools with a JSON object. Raises Malformed."""
        if not isinstance(name, str) or name not in self.tools:
            raise Malformed
        check(arguments)
        return name, arguments

    def checked_json(self, text: str) -> tuple[str, str]:
        """The call in a JSON object of `name` and `arguments` or `parameters`. Raises Malformed."""
        found = json_text.members(text)
        if "name" not in found:
            raise Malformed
        name = found["name"].value
        if not isinstance(name, str) or name not in self.tools:
            raise Malformed
        present = [found[key] for key in ("arguments", "parameters") if key in found]
        given = next((member for member in present if member.value is not None), json_text.Member({}, "{}"))
        if isinstance(given.value, str):
            return self.checked(name, given.value if given.value.strip() else "{}")
        check(given.text)
        return name, given.text

    def call(self, *calls: tuple[str, str]) -> None:
        """Give out calls that are complete with what is read. Of each: the tool's name, and a JSON object."""
        for name, arguments in calls:
            if not self.done:
                self._events += [CallBegin(self.new_id(), name), ArgumentText(arguments)]
                self._called += 1
                self.done = self._single or self._called == MAX_CALLS
        self._blank = ""
        self._given_out = True
        self.source.drop_read()

    def closing(self, end: str, *again: str) -> Generator[None, None, bool]:
        """Read `end` or one of `again` behind a call, and white space before it; True for `end`. Raises Malformed.

        A mark that the answer's end cut off is dropped.
        """
        yield from self.source.space()
        try:
            ended = (yield from self.source.literal(end, *again)) == end
        except Ended:
            self.source.at = len(self.source.text)
            self.source.drop_read()
            raise
        if ended:
            self.source.drop_read()
        return ended

    def _read(self) -> Generator[None, None, None]:
        source = self.source
        yield from self._attempt(self.opening())
        while not self.done:
            try:
                yield from self._content()
            except Ended:
                self._text(len(source.text))
                return
            yield from self._attempt(self.calls())

    def _attempt(self, reading: Generator[None, None, None]) -> Generator[None, None, None]:
        self._given_out = False
        try:
            yield from reading
        except Ended:
            self.source.at = len(self.source.text)
        except Malformed:
            if not self._given_out:  # past the marker at least, so that it is not found again
                self.source.at = max(self.source.at, self._marker_length())
        else:
            self.source.drop_read()
            return
        self._text(self.source.at)

    def _marker_length(self) -> int:
        return max((len(start) for start in self.starts if self.source.text.startswith(start)), default=0)

    def _content(self) -> Generator[None, None, None]:
        """Give out content up to a start marker, which stays unread."""
        source = self.source
        while True:
            places = [place for start in self.starts if (place := source.text.find(start)) >= 0]
            if places:
                self._text(min(places))
                return
            self._text(len(source.text) - tail_to_keep(source.text, self.starts))
            yield from source.more()

    def _text(self, end: int) -> None:
        """Give out the text up to `end` as content, and forget it."""
        if self.done:
            return
        text = self._blank + self.source.text[:end]
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if shown:
            self._events.append(Text(shown))
        self.source.at = end
        self.source.drop_read()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events
