"""Reading calls of tools out of an answer that comes in pieces: what all formats have in common.

A call is given out as it comes, from where it is sure to be one of the request's tools. What looks like a call and is
none is content, as it stands; nothing is lost, and nothing is raised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import ClassVar, Protocol

from languagepipes_node.end_model.text.stop_strings import tail_to_keep
from languagepipes_node.end_model.tools.calls import CallWriter, Tools, call_id
from languagepipes_node.end_model.tools.events import Event, Text
from languagepipes_node.end_model.tools.source import Ended, Malformed, Source


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

    @property
    def broken(self) -> bool:
        """Whether a call was begun that is not complete, once nothing more comes."""
        ...

    def feed(self, text: str) -> list[Event]:
        """What `text` completes."""
        ...

    def finish(self) -> list[Event]:
        """What was held back, at the end of the answer."""
        ...


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
        self.source = Source()
        self._writer = CallWriter(tools, single=single, new_id=self.new_id)
        self._blank = ""  # white space that is content only if content follows
        self._reading = self._read()

    @property
    def broken(self) -> bool:
        return self._writer.broken

    @property
    def tools(self) -> Tools:
        return self._writer.tools

    def feed(self, text: str) -> list[Event]:
        if text and not self.done:
            self.source.text += text
            next(self._reading, None)
        return self._writer.events()

    def finish(self) -> list[Event]:
        self.source.ended = True
        if not self.done:
            next(self._reading, None)
            if self._blank and not self._writer.count and not self._writer.broken:
                self._writer.add(Text(self._blank))
            self.done = True
        return self._writer.events()

    @abstractmethod
    def calls(self) -> Generator[None, None, None]:
        """Read one or more calls, from the start marker on: `named`, then their arguments, then `end`. Raises
        Malformed."""

    def opening(self) -> Generator[None, None, None]:
        """Read what may be a call at the very beginning only. Raises Malformed."""
        yield from ()

    def new_id(self) -> str:
        return call_id()

    def named(self, name: object) -> None:
        """What follows is of a call of this tool. Raises Malformed if there is none of the name."""
        self._writer.name(name)

    def argument(self, text: str) -> None:
        """Give out a piece of the arguments, which is complete with what is read. The first one begins the call."""
        self._writer.argument(text)
        if self._writer.open:
            self._blank = ""
            self.source.take()

    def defer(self, text: str) -> None:
        """A piece of the arguments that is sure with the next one only."""
        self._writer.defer(text)

    def mute(self, more: int) -> None:
        """Pieces are read for nothing while this was told 1 more often than -1."""
        self._writer.mute(more)

    def end(self) -> None:
        """The call is complete with what is read. Raises Ended behind an answer's last one."""
        self._writer.end()
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
        source, writer = self.source, self._writer
        before = writer.count
        try:
            yield from reading
        except Ended:
            source.at = len(source.text)
            if writer.leave(ended=source.ended):
                self._blank = ""
                source.take()
            self.done = writer.done
        except Malformed:
            begun = writer.leave(ended=False)
            if writer.count == before and not begun:  # past the marker, so that it is not found again
                source.at = max(source.at, self._marker_length())
        else:
            source.drop_read()
            return
        source.drop_taken()
        self._text(source.at)

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
            self._writer.add(Text(shown))
        self.source.at = end
        self.source.drop_read()
