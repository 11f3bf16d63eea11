"""The calls of one answer, given out piece by piece.

A call begins with the first piece of its arguments, once it is known that it calls one of the request's tools; from
then on it is never taken back. It knows no format.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from languagepipes_node.end_model.tools.arguments import MAX_CALLS
from languagepipes_node.end_model.tools.events import ArgumentText, CallBegin, Event
from languagepipes_node.end_model.tools.source import Ended, Malformed

# Each tool's parameters (JSON Schema), by the tool's name.
Tools = Mapping[str, Mapping[str, Any]]


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class CallWriter:
    """done: no call may follow, since there was one (`single`), or as many as a message may hold. open: a call has
    begun and not ended. broken: one never ended, by the text's end or by what no call may hold."""

    def __init__(self, tools: Tools, *, single: bool, new_id: Callable[[], str] = call_id) -> None:
        self.tools = tools
        self.done = False
        self.open = False
        self.broken = False
        self.count = 0
        self._single = single
        self._new_id = new_id
        self._events: list[Event] = []
        self._arguments: list[str] = []  # not among the events yet
        self._name: str | None = None  # of a call that has not begun
        self._deferred = ""
        self._muted = 0

    def add(self, event: Event) -> None:
        """Something else of the answer, which comes behind what was given out."""
        self._flush()
        self._events.append(event)

    def events(self) -> list[Event]:
        """Those that were not returned yet."""
        self._flush()
        events, self._events = self._events, []
        return events

    def name(self, name: Any) -> None:
        """What follows is of a call of this tool. Raises Malformed if there is none of the name."""
        if not isinstance(name, str) or name not in self.tools:
            raise Malformed
        self._name = name

    def argument(self, text: str) -> None:
        """A piece of the arguments. With the first one the call begins."""
        if self._muted:
            return
        self.begin()
        self._arguments += (self._deferred, text) if self._deferred else (text,)
        self._deferred = ""

    def defer(self, text: str) -> None:
        """A piece that is only sure with the next one."""
        if not self._muted:
            self._deferred += text

    def mute(self, more: int) -> None:
        """While this was told 1 more often than -1, nothing is given out: of an argument whose name there was."""
        self._muted += more

    def begin(self) -> None:
        """The call of the tool that was named, if it has not begun."""
        if self._name is not None:
            name, self._name = self._name, None
            self.add(CallBegin(self._new_id(), name))
            self.open = True

    def end(self) -> None:
        """The call is complete. Raises Ended if it was the last one: nothing that follows is to be read."""
        self.open = False
        self.count += 1
        self.done = self._single or self.count == MAX_CALLS
        if self.done:
            raise Ended

    def leave(self, *, ended: bool) -> bool:
        """The reading of calls is over; whether one was begun and did not end. ended: by the end of the text; a call
        that is named begins then, since nothing can follow that shows it to be none."""
        if ended:
            self.begin()
        begun, self.open = self.open, False
        self.broken = self.broken or begun
        self._name, self._deferred, self._muted = None, "", 0
        return begun

    def _flush(self) -> None:
        if self._arguments:
            self._events.append(ArgumentText("".join(self._arguments)))
            self._arguments = []
