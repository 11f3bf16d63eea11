"""Reading a text that arrives in pieces: generators that yield wherever they need more of it. It knows no format."""

from __future__ import annotations

import re
from collections.abc import Generator

_SPACE = re.compile(r"\s*")
_IN_STRING = re.compile(r'["\\]')
# Outside of strings JSON has these, and characters of numbers and names.
_OUT_OF_STRING = re.compile(r'["{}\[\]]|[^\s\w,:.+\-]')


class Malformed(Exception):
    """What stands at the source's place is not what the format asks for."""


class Ended(Malformed):
    """The text ended before the format allows it."""


class Source:
    """The text so far. `at`: how far it is read; `ended`: no more will come.

    The readers below are generators: `yield` means that more text is needed. They raise Malformed, with `at` where the
    text departs from the format, and Ended.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False

    def drop_read(self) -> None:
        """Forget what is read."""
        self.text = self.text[self.at :]
        self.at = 0

    def more(self) -> Generator[None, None, None]:
        if self.ended:
            raise Ended
        yield

    def space(self) -> Generator[None, None, None]:
        """Read white space, if there is any. At the end of the text nothing is raised."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None  # noqa: S101 (it matches nothing as well)
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return
            yield

    def peek(self) -> Generator[None, None, str]:
        """The next character, which stays unread."""
        while self.at >= len(self.text):
            yield from self.more()
        return self.text[self.at]

    def literal(self, *options: str) -> Generator[None, None, str]:
        """Read one of `options`, none of which begins another."""
        while True:
            for option in options:
                if self.text.startswith(option, self.at):
                    self.at += len(option)
                    return option
            rest = self.text[self.at : self.at + max(map(len, options))]
            if not any(option.startswith(rest) for option in options):
                raise Malformed
            yield from self.more()

    def surplus(self, sign: str, end: str) -> Generator[None, None, None]:
        """Read `sign`, repeated and with white space around, where `end` stands behind it; else nothing. Before the end
        of the text, or what may be a part of `end` there, `sign` is read too."""
        start = self.at
        yield from self.space()
        while (yield from self._begins(sign)):
            self.at += len(sign)
            yield from self.space()
        if not (yield from self._begins(end)) and not end.startswith(self.text[self.at :]):
            self.at = start

    def _begins(self, text: str) -> Generator[None, None, bool]:
        """Whether `text` comes next, which stays unread."""
        while text.startswith(rest := self.text[self.at : self.at + len(text)]):
            if rest == text:
                return True
            if self.ended:
                return False
            yield
        return False

    def until(self, *ends: str) -> Generator[None, None, str]:
        """Read up to the nearest of `ends`, which stays unread; the text before it."""
        longest = max(map(len, ends))
        searched = self.at
        while True:
            places = [place for end in ends if (place := self.text.find(end, searched)) >= 0]
            if places:
                start, self.at = self.at, min(places)
                return self.text[start : self.at]
            searched = max(searched, len(self.text) - longest + 1)
            yield from self.more()

    def name(self, pattern: re.Pattern[str]) -> Generator[None, None, str]:
        """Read the longest text that matches `pattern`, which must be followed by something else."""
        while True:
            match = pattern.match(self.text, self.at)
            end = self.at if match is None else match.end()
            if end < len(self.text):
                if end == self.at:
                    raise Malformed
                found, self.at = self.text[self.at : end], end
                return found
            yield from self.more()

    def json_string(self) -> Generator[None, None, str]:
        """Read a JSON string, quotes included."""
        yield from self.literal('"')
        start, place = self.at - 1, self.at
        while True:
            match = _IN_STRING.search(self.text, place)
            if match is None or (match[0] == "\\" and match.end() == len(self.text)):
                place = len(self.text) if match is None else match.start()
                yield from self.more()
            elif match[0] == '"':
                self.at = match.end()
                return self.text[start : self.at]
            else:
                place = match.end() + 1

    def json(self, opening: str = "{") -> Generator[None, None, str]:
        """Read a JSON object or array by its brackets; its text, which may still be no JSON."""
        if (yield from self.peek()) not in opening:
            raise Malformed
        start = place = self.at
        depth = 0
        in_string = False
        while True:
            match = (_IN_STRING if in_string else _OUT_OF_STRING).search(self.text, place)
            if match is None or (match[0] == "\\" and match.end() == len(self.text)):
                place = len(self.text) if match is None else match.start()
                yield from self.more()
                continue
            place = match.end()
            match match[0]:
                case "\\":
                    place += 1
                case '"':
                    in_string = not in_string
                case "{" | "[":
                    depth += 1
                case "}" | "]":
                    depth -= 1
                    if not depth:
                        self.at = place
                        return self.text[start:place]
                case _:
                    self.at = match.start()
                    raise Malformed
