"""gpt-oss's format, harmony: messages on channels, thinking and calls among them
(https://cookbook.openai.com/articles/openai-harmony)."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator

from languagepipes_node.end_model.text.stop_strings import tail_to_keep
from languagepipes_node.end_model.tools.calls import CallWriter, Tools
from languagepipes_node.end_model.tools.events import Event, Reasoning, Text
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
        self._writer = CallWriter(tools, single=single)
        self._source = Source()
        self._shown: set[type[Event]] = set()
        self._reading = self._read()

    @property
    def broken(self) -> bool:
        return self._writer.broken

    def feed(self, text: str) -> list[Event]:
        if text and not self.done:
            self._source.text += text
            next(self._reading, None)
        return self._writer.events()

    def finish(self) -> list[Event]:
        self._source.ended = True
        if not self.done:
            next(self._reading, None)
            self.done = True
        return self._writer.events()

    def _read(self) -> Generator[None, None, None]:
        source, writer = self._source, self._writer
        while not self.done:
            try:
                yield from self._message()
            except Ended:
                begun = writer.leave(ended=source.ended)
                self.done = writer.done
                if not (begun or self.done or self._is_unfinished_header()):
                    self._show(Text, source.text)
                return
            except Malformed:
                writer.leave(ended=False)
                source.drop_taken()
                yield from self._body(Text, skip=source.at)  # no header, or no arguments: taken for content
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
        function = _FUNCTION.search(header)
        if function and function[1] in self._writer.tools:
            self._writer.name(function[1])
            yield from self._arguments()
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

    def _arguments(self) -> Generator[None, None, None]:
        """A call's message behind its header; none are an empty object. What follows them in it is content."""
        source, writer = self._source, self._writer

        def give_out(text: str) -> None:
            writer.argument(text)
            source.take()

        yield from source.space()
        if (yield from self._is_mark()):
            give_out("{}")
        else:
            yield from source.json(give_out)
        source.drop_read()
        writer.end()
        yield from source.space()
        source.drop_read()
        try:
            yield from self._is_mark()
        except Ended:  # a mark that the answer's end cut off
            source.at = len(source.text)
        else:
            yield from self._body(Text)

    def _is_mark(self) -> Generator[None, None, bool]:
        """Whether a message's end, or another's beginning, comes next; it stays unread."""
        at = self._source.at
        try:
            yield from self._source.literal(*_ENDINGS, *_OPENINGS)
        except Ended:
            raise
        except Malformed:
            return False
        self._source.at = at
        return True

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
        self._writer.add(event)
