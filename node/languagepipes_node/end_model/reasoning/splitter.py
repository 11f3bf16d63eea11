"""Telling thinking from the answer in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from languagepipes_node.end_model.text.stop_strings import tail_to_keep
from languagepipes_node.end_model.tools.events import Event, Reasoning, Text


class Marks(NamedTuple):
    """What thinking stands between."""

    begin: str
    end: str


# Qwen 3, DeepSeek R1, GLM, SmolLM3 and many others; Magistral; Seed-OSS; Gemma 4.
MARKS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|channel>thought", "<channel|>"),
)


def detect(template: str) -> Marks | None:
    """The marks of the thinking that a chat template's text speaks of."""
    return next((marks for marks in MARKS if marks.begin in template or marks.end in template), None)


def opens(prompt: str, marks: Marks) -> bool:
    """Whether the answer to a prompt begins within thinking, since the template has opened it."""
    return prompt.rstrip().endswith(marks.begin)


class ThinkingSplitter:
    """Thinking is what stands between the marks at the very beginning of an answer. White space around them is dropped.

    inside: the answer begins within thinking. Thinking that never ends is thinking all of it.
    """

    broken: ClassVar[bool] = False

    def __init__(self, marks: Marks, *, inside: bool) -> None:
        self.done = False
        self.thinking = inside
        self._marks = marks
        self._held = ""  # not given out yet
        self._begun = inside  # whether it is known how the answer begins
        self._fresh = inside  # nothing of the thinking, or of the answer after it, was given out yet

    def feed(self, text: str) -> list[Event]:
        self._held += text
        if not self._begun and not self._begin():
            return []
        events: list[Event] = []
        if self.thinking:
            events += self._think()
        if not self.thinking and self._held:
            if self._fresh:
                self._held = self._held.lstrip()
                self._fresh = not self._held
            if self._held:
                events.append(Text(self._held))
                self._held = ""
        return events

    def finish(self) -> list[Event]:
        held, self._held = self._held, ""
        if self.thinking:
            held = held.strip() if self._fresh else held.rstrip()
            return [Reasoning(held)] if held else []
        return [Text(held)] if held else []

    def _begin(self) -> bool:
        stripped = self._held.lstrip()
        if self._marks.begin.startswith(stripped[: len(self._marks.begin)]) and len(stripped) < len(self._marks.begin):
            return False
        self._begun = True
        if stripped.startswith(self._marks.begin):
            self._held = stripped[len(self._marks.begin) :]
            self.thinking = self._fresh = True
        return True

    def _think(self) -> Sequence[Event]:
        if self._fresh:
            self._held = self._held.lstrip()
        end = self._held.find(self._marks.end)
        keep = tail_to_keep(self._held, (self._marks.end,)) if end < 0 else 0
        shown = (self._held[:end] if end >= 0 else self._held[: len(self._held) - keep]).rstrip()
        self._held = self._held[end + len(self._marks.end) :] if end >= 0 else self._held[len(shown) :]
        if shown:
            self._fresh = False
        if end >= 0:
            self.thinking, self._fresh = False, True
        return [Reasoning(shown)] if shown else []
