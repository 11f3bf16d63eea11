"""gpt-oss's format, harmony: messages on channels, thinking and calls among them
(https://cookbook.openai.com/articles/openai-harmony)."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator

from languagepipes_node.end_model.text.stop_strings import tail_to_keep
from languagepipes_node.end_model.tools.arguments import MAX_CALLS, check
from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Event, Reasoning, Text
from languagepipes_node.end_model.tools.parser import Tools, call_id
from languagepipes_node.end_model.tools.source import Ended, Malformed, Source

_OPENINGS = ("<|start|>", "<|channel|>")
_ENDINGS = ("<|end|>", "<|call|>", "<|return|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*([a-z]+)")
_FUNCTION = re.compile(r"\bto=functions\.([\w.-]+)")
_ANY_RECIPIENT = re.compile(r"\bto=")


class HarmonyParser:
    """The analysis channel is thinking, a message to `functions.NAME` a call, all else content.

    The answer begins behind `<|start|>assistant`, which the prompt ends with. tools: those that may be called. single:
    the answer ends with the first call.
    """

    starts = _OPENINGS
    markers = (*_ENDINGS, "<|message|>", "<|constrain|>")

    def __init__(self, tools: Tools, *, single: bool = False) -> None:
        self.done = False
        self.thinking = False
        self._tools = tools
        self._single = single
        self._called = 0
        self._source = Source()
        self._events: list[Event] = []
        self._shown: set[type[Event]] = set()
        self._reading = self._read()

    def feed(self, text: str) -> list[Event]:
        if text and not self.done:
            self._source.text += text
            next(self._reading, None)
        return self._take()

    def finish(self) -> list[Event]:
        self._source.ended = True
        if not self.done:
            next(self._reading, None)
            self.done = True
        return self._take()

    def _read(self) -> Generator[None, None, None]:
        source = self._source
        while not self.done:
            try:
                yield from self._message()
            except Ended:
                if not self._is_unfinished_header():
                    self._show(Text, source.text)
                return
            except Malformed:
                yield from self._body(Text)  # no header: taken for content
            self.thinking = False
            source.drop_read()

    def _message(self) -> Generator[None, None, None]:
        """Raises Ended and Malformed before anything of the message is read for good."""
        source = self._source
        if (yield from source.peek()).isspace():
            yield from source.space()
        yield from source.literal(*_OPENINGS, "to=")
        yield from source.until("<|message|>")
        header = source.text[: source.at]
        yield from source.literal("<|message|>")
        channel = _CHANNEL.search(header)
        if function := _FUNCTION.search(header):
            body = source.at
            try:
                yield from source.until(*_ENDINGS, *_OPENINGS)
            except Ended:
                source.at = len(source.text)  # the token that ends a call ends the answer too, and is not text
            self._call(function[1], source.text[body : source.at])
            yield from self._ending()
        elif _ANY_RECIPIENT.search(header):
            yield from self._body(Text, skip=source.at)
        else:
            source.drop_read()
            self.thinking = channel is not None and channel[1] == "analysis"
            yield from self._body(Reasoning if self.thinking else Text, separate=True)

    def _is_unfinished_header(self) -> bool:
        """Whether the answer ended in a header that names no call: nothing that was meant to be shown."""
        text = self._source.text.lstrip()
        if _ANY_RECIPIENT.search(text):
            return False
        return any(text.startswith(mark) or (text and mark.startswith(text)) for mark in _OPENINGS)

    def _call(self, name: str, arguments: str) -> None:
        ended = self._source.at < len(self._source.text)
        arguments = arguments.strip() or ("{}" if ended else "")
        try:
            if name not in self._tools:
                raise Malformed
            check(arguments)
        except Malformed:
            self._show(Text, self._source.text[: self._source.at])
        else:
            self._events += [CallBegin(call_id(), name), ArgumentText(arguments)]
            self._called += 1
            self.done = self._single or self._called == MAX_CALLS
        self._source.drop_read()

    def _body(
        self, kind: Callable[[str], Event], *, separate: bool = False, skip: int = 0
    ) -> Generator[None, None, None]:
        """Give out the text up to the message's end as it comes. skip: characters that are not looked at for one."""
        source = self._source
        markers = (*_ENDINGS, *_OPENINGS)
        while True:
            places = [place for marker in markers if (place := source.text.find(marker, skip)) >= 0]
            keep = 0 if source.ended else tail_to_keep(source.text, markers)
            end = min(places) if places else len(source.text) - keep
            self._show(kind, source.text[:end], separate=separate)
            separate = separate and not end
            skip = max(0, skip - end)
            source.at = end
            source.drop_read()
            if places:
                yield from self._ending()
                return
            if source.ended:
                return
            yield

    def _ending(self) -> Generator[None, None, None]:
        """Read what ends a message; the beginning of another one ends it too."""
        if self._source.text.startswith(_ENDINGS, self._source.at):
            yield from self._source.literal(*_ENDINGS)
        self._source.drop_read()

    def _show(self, kind: Callable[[str], Event], text: str, *, separate: bool = False) -> None:
        """separate: on a line of its own, if something of the kind was shown."""
        if not text:
            return
        event = kind(text)
        if separate and type(event) in self._shown:
            event = kind("\n" + text)
        self._shown.add(type(event))
        self._events.append(event)

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events
