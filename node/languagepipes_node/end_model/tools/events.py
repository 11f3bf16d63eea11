"""What an answer consists of, once it is read: thinking, content, and calls of tools."""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """Content, for the user."""

    text: str


class Reasoning(NamedTuple):
    """Thinking, shown apart from the content."""

    text: str


class CallBegin(NamedTuple):
    """A call of the tool `name` begins. Until the next one, `ArgumentText` belongs to it."""

    id: str
    name: str


class ArgumentText(NamedTuple):
    """A piece of the call's arguments: joined, those of a complete call are one JSON object, if the model wrote one."""

    text: str


Event = Text | Reasoning | CallBegin | ArgumentText
