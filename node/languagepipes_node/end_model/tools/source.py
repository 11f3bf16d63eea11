"""Reading a text that arrives in pieces: generators that yield wherever they need more of it. It knows no format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator

from languagepipes_node.end_model.text.stop_strings import tail_to_keep

_SPACE = re.compile(r"\s*")
_IN_STRING = re.compile(r'["\\\x00-\x1f]')
_END_OR_ESCAPE = re.compile(r'["\\]')
# Escapes in JSON strings: a surrogate pair, a code unit, half of a pair, what may yet become one of them.
_PAIR = re.compile(r"\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}")
_UNIT = re.compile(r"\\u[\da-fA-F]{4}")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_BEGUN = re.compile(
    r"\\(u[\da-fA-F]{0,3})?|\\u[dD][89abAB][\da-fA-F]{2}(\\(u([dD]([c-fC-F][\da-fA-F]?)?)?)?)?", re.ASCII
)
# Outside of strings JSON has these, and characters of numbers and names.
_OUT_OF_STRING = re.compile(r'["{}\[\]]|[^\s\w,:.+\-]')


class Malformed(Exception):
    """What stands at the source's place is not what the format asks for."""


class Ended(Malformed):
    """The text ended before the format allows it."""


class Source:
    """The text so far. `at`: how far it is read; `taken`: how far of that it is given out for good; `ended`: no more
    will come.

    The readers below are generators: `yield` means that more text is needed. They raise Malformed, with `at` where the
    text departs from the format, and Ended.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.taken = 0
        self.ended = False

    def take(self) -> None:
        """What is read is given out."""
        self.taken = self.at

    def drop_taken(self) -> None:
        self.text = self.text[self.taken :]
        self.at -= self.taken
        self.taken = 0

    def drop_read(self) -> None:
        """Forget what is read."""
        self.text = self.text[self.at :]
        self.at = self.taken = 0

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
            match = _END_OR_ESCAPE.search(self.text, place)
            if match is None or (match[0] == "\\" and match.end() == len(self.text)):
                place = len(self.text) if match is None else match.start()
                yield from self.more()
            elif match[0] == '"':
                self.at = match.end()
                return self.text[start : self.at]
            else:
                place = match.end() + 1

    def until_passing(self, pass_on: Callable[[str], None], *ends: str) -> Generator[None, None, None]:
        """Read up to the nearest of `ends`, which stays unread, and pass the text before it on as it comes."""
        while True:
            places = [place for end in ends if (place := self.text.find(end, self.at)) >= 0]
            if places:
                self._pass_on(min(places), pass_on)
                return
            self._pass_on(max(self.at, len(self.text) - tail_to_keep(self.text, ends)), pass_on)
            yield from self._more_of_taken()

    def json(self, pass_on: Callable[[str], None], opening: str = "{") -> Generator[None, None, None]:
        """Read a JSON object or array by its brackets, and pass it on as it comes. It may still be no JSON, but what
        its strings may not hold is escaped (see `string`)."""
        if (yield from self.peek()) not in opening:
            raise Malformed
        depth = 0
        while True:
            match = _OUT_OF_STRING.search(self.text, self.at)
            if match is None:
                self._pass_on(len(self.text), pass_on)
                yield from self._more_of_taken()
                continue
            sign = match[0]
            if sign not in '"{}[]':
                self._pass_on(match.start(), pass_on)
                raise Malformed
            self._pass_on(match.end(), pass_on)
            if sign == '"':
                yield from self.string(pass_on)
                pass_on('"')
                continue
            depth += 1 if sign in "{[" else -1
            if not depth:
                return

    def string(self, pass_on: Callable[[str], None]) -> Generator[None, None, None]:
        """Read a JSON string behind its opening quote, up to and with the closing one, and pass its text on as it
        comes, in parts that hold whole escapes: a control character escaped, and U+FFFD for half of a surrogate pair,
        which no strict reader accepts."""
        while True:
            match = _IN_STRING.search(self.text, self.at)
            self._pass_on(len(self.text) if match is None else match.start(), pass_on)
            if match is None:
                yield from self._more_of_taken()
            elif match[0] == '"':
                self.at += 1
                return
            elif match[0] == "\\":
                yield from self._escape(pass_on)
            else:
                self.at += 1
                pass_on(json.dumps(match[0])[1:-1])

    def _escape(self, pass_on: Callable[[str], None]) -> Generator[None, None, None]:
        """Of one that the answer's end cut, nothing is passed on."""
        while _BEGUN.fullmatch(rest := self.text[self.at : self.at + 12]):
            yield from self._more_of_taken()
        if _PAIR.match(rest):
            self._pass_on(self.at + 12, pass_on)
        elif _HALF.match(rest) and _UNIT.match(rest):
            self.at += 6
            pass_on("\\ufffd")
        else:
            self._pass_on(self.at + (6 if _UNIT.match(rest) else 2), pass_on)

    def _pass_on(self, end: int, pass_on: Callable[[str], None]) -> None:
        """Read up to `end`."""
        text, self.at = self.text[self.at : end], end
        if text:
            pass_on(text)

    def _more_of_taken(self) -> Generator[None, None, None]:
        """What is given out is forgotten, so that a long text takes no longer than in proportion to its length."""
        self.drop_taken()
        yield from self.more()
