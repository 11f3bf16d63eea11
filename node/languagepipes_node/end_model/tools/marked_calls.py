"""Formats that mark each argument, or the call's parts, with texts of their own: Qwen3-Coder, GLM, DeepSeek, Gemma."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Any

from languagepipes_node.end_model.tools import json_text
from languagepipes_node.end_model.tools.parser import ToolParser
from languagepipes_node.end_model.tools.source import Ended, Malformed

_NAME = re.compile(r"[\w.-]{1,64}")  # longer ones are no tools; what is looked at anew with each piece has an end
_SCALAR = re.compile(r"[^\s,{}\[\]<]{1,256}")
_SCALAR_END = re.compile(r"[\s,}\]]")
_MAX_DEPTH = 64


class _MarkedParser(ToolParser):
    """Arguments that are marked one by one. The JSON of them is given out argument by argument; what is known to be
    text, as it comes. Of two arguments of one name the first one counts."""

    def member(self, key: str, known: set[str]) -> bool:
        """What follows is this argument's value, until `member_end`, which is told what this returns. known: the names
        of those before, to which it is added."""
        begun = ", " if known else "{"
        repeated = key in known
        self.mute(repeated)
        self.defer(f"{begun}{json_text.string(key)}: ")
        known.add(key)
        return repeated

    def member_end(self, repeated: bool) -> None:
        self.mute(-repeated)

    def object_end(self, known: set[str]) -> None:
        self.argument("}" if known else "{}")

    def text(self, text: str) -> None:
        """A piece of a string's inside."""
        self.argument(json_text.string(text)[1:-1])


class _UntypedParser(_MarkedParser):
    """Arguments that are not marked as strings or as something else: the tool's schema decides."""

    def schema_of(self, name: str, argument: str) -> Any:
        properties = self.tools.get(name, {}).get("properties")
        return properties.get(argument) if isinstance(properties, dict) else None

    def is_text(self, name: str, argument: str) -> bool:
        """Whether the argument is text whatever it looks like."""
        return json_text.types_of(self.schema_of(name, argument), self.tools.get(name)) == {"string"}

    def typed(self, name: str, argument: str, raw: str) -> str:
        """The argument as JSON."""
        return json_text.typed(raw, self.schema_of(name, argument), self.tools.get(name))


class QwenXmlParser(_UntypedParser):
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`, of Qwen3-Coder and
    Qwen 3.5; each value stands on lines of its own. The outer pair is left out by some models."""

    starts = ("<tool_call>", "<function=")
    markers = ("</tool_call>",)

    def calls(self) -> Generator[None, None, None]:
        if (yield from self.source.literal(*self.starts)) == "<tool_call>":
            yield from self.source.space()
            yield from self.source.literal("<function=")
        while True:
            yield from self._function()
            if (yield from self.closing("</tool_call>", "<function=")):
                return

    def _function(self) -> Generator[None, None, None]:
        source = self.source
        name = (yield from source.until(">", "\n")).strip()
        yield from source.literal(">")
        self.named(name)
        known: set[str] = set()
        yield from source.space()
        while (yield from source.literal("<parameter=", "</function>")) == "<parameter=":
            key = (yield from source.until(">", "\n")).strip()
            yield from source.literal(">")
            open_keys = self._properties(name) - {key, *known}
            repeated = self.member(key, known)
            if self.is_text(name, key):
                self.argument('"')
                yield from self._value(open_keys, self.text)
                self.argument('"')
            else:
                parts: list[str] = []
                yield from self._value(open_keys, parts.append)
                self.argument(self.typed(name, key, "".join(parts)))
            self.member_end(repeated)
        self.object_end(known)
        self.end()

    def _properties(self, name: str) -> set[str]:
        properties = self.tools.get(name, {}).get("properties")
        return set(properties) if isinstance(properties, dict) else set()

    def _value(self, open_keys: set[str], pass_on: Callable[[str], None]) -> Generator[None, None, None]:
        """Up to a `</parameter>` with another parameter or the function's end behind it: values may hold such tags.
        Where that is left out, up to a line that begins one of `open_keys`, the arguments that may still come. The text
        is passed on as it comes, without the line breaks around it."""
        source = self.source
        inside = _WithoutBreaks(pass_on)
        while True:
            yield from source.until_passing(inside, "</parameter>", "\n<parameter=")
            end = source.at
            mark = yield from source.literal("</parameter>", "\n<parameter=")
            if mark == "</parameter>":
                end = source.at
                ends = yield from self._goes_on()
            else:
                ends = (yield from source.until(">", "\n")).strip() in open_keys
                ends = ends and (yield from source.peek()) == ">"
            if ends:
                source.at = end
                yield from source.space()
                return
            source.at = end if mark == "</parameter>" else end + len(mark)
            inside(mark)

    def _goes_on(self) -> Generator[None, None, bool]:
        """Whether another parameter or the function's end comes next."""
        yield from self.source.space()
        try:
            yield from self.source.literal("<parameter=", "</function>")
        except Ended:
            raise
        except Malformed:
            return False
        return True


class _WithoutBreaks:
    """Passes a text in pieces on, without one line break at its beginning and one at its end."""

    def __init__(self, pass_on: Callable[[str], None]) -> None:
        self._pass_on = pass_on
        self._begun = False
        self._held = ""

    def __call__(self, text: str) -> None:
        """text: not empty."""
        if not self._begun:
            self._begun = True
            text = text.removeprefix("\n")
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        if shown := text.removesuffix("\n"):
            self._pass_on(shown)


class GlmParser(_UntypedParser):
    """`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`, of GLM 4.5 and later; strings
    stand as they are, all else as JSON, and between the parts there may be line breaks."""

    starts = ("<tool_call>",)
    markers = ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

    def calls(self) -> Generator[None, None, None]:
        source = self.source
        yield from source.literal("<tool_call>")
        yield from source.space()
        name = (yield from source.until("<arg_key>", "</tool_call>", "<tool_call>")).strip()
        self.named(name)
        known: set[str] = set()
        while (yield from source.literal("<arg_key>", "</tool_call>")) == "<arg_key>":
            key = (yield from source.until("</arg_key>")).strip()
            yield from source.literal("</arg_key>")
            yield from source.space()
            yield from source.literal("<arg_value>")
            repeated = self.member(key, known)
            if self.is_text(name, key):
                self.argument('"')
                yield from source.until_passing(self.text, "</arg_value>")
                yield from source.literal("</arg_value>")
                self.argument('"')
            else:
                raw = yield from source.until("</arg_value>")
                yield from source.literal("</arg_value>")
                self.argument(self.typed(name, key, raw))
            self.member_end(repeated)
            yield from source.space()
        self.object_end(known)
        self.end()


_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


class DeepSeekParser(ToolParser):
    """Each call between `<｜tool▁call▁begin｜>` and `<｜tool▁call▁end｜>`: `NAME<｜tool▁sep｜>{…}` of V3.1, or
    `function<｜tool▁sep｜>NAME` and the arguments in a fenced block, of V3 and R1."""

    starts = (_CALLS_BEGIN, _CALL_BEGIN)
    markers = (_CALLS_END, _CALL_END, _SEPARATOR)

    def calls(self) -> Generator[None, None, None]:
        if (yield from self.source.literal(*self.starts)) == _CALLS_BEGIN:
            yield from self.source.space()
            yield from self.source.literal(_CALL_BEGIN)
        while True:
            yield from self._call()
            if (yield from self.closing(_CALLS_END, _CALL_BEGIN)):
                return

    def _call(self) -> Generator[None, None, None]:
        source = self.source
        name = (yield from source.until(_SEPARATOR, _CALL_END)).strip()
        yield from source.literal(_SEPARATOR)
        yield from source.space()
        if name in self.tools:
            self.named(name)
        if (yield from source.peek()) == "{":
            self.named(name)
            yield from source.json(self.argument)
            self.end()
        else:
            name = (yield from source.until("\n", _CALL_END)).strip()
            self.named(name)
            yield from source.space()
            yield from source.literal("```json")
            yield from source.space()
            yield from source.json(self.argument)
            self.end()
            yield from self.closing("```")
        yield from self.closing(_CALL_END)


class GemmaParser(_MarkedParser):
    """`<start_function_call>call:NAME{KEY:<escape>TEXT<escape>,KEY:1}<end_function_call>` of FunctionGemma
    (https://ai.google.dev/gemma/docs/functiongemma), and the same with Gemma 4's marks. Older Gemma models have no
    format of their own."""

    starts = ("<start_function_call>", "<|tool_call>")
    markers = ("<end_function_call>", "<tool_call|>", "<escape>", '<|"|>')

    def calls(self) -> Generator[None, None, None]:
        gemma4 = (yield from self.source.literal(*self.starts)) == "<|tool_call>"
        yield from self.source.space()
        yield from self.source.literal("call:")
        self.named((yield from self.source.name(_NAME)))
        yield from self.source.space()
        yield from self._object('<|"|>' if gemma4 else "<escape>", _MAX_DEPTH)
        self.end()
        yield from self.closing("<tool_call|>" if gemma4 else "<end_function_call>")

    def _value(self, quote: str, depth: int) -> Generator[None, None, None]:
        source = self.source
        if not depth:
            raise Malformed
        match (yield from source.peek()):
            case "{":
                yield from self._object(quote, depth)
            case "[":
                yield from self._array(quote, depth)
            case "<":
                yield from source.literal(quote)
                self.argument('"')
                yield from source.until_passing(self.text, quote)
                yield from source.literal(quote)
                self.argument('"')
            case '"':
                source.at += 1
                self.argument('"')
                yield from source.string(self.argument)
                self.argument('"')
            case _:
                raw = yield from source.name(_SCALAR)
                if not _SCALAR_END.match(source.text, source.at):
                    raise Malformed
                self.argument(json_text.typed(raw, None))

    def _object(self, quote: str, depth: int) -> Generator[None, None, None]:
        source = self.source
        yield from source.literal("{")
        known: set[str] = set()
        while True:
            yield from source.space()
            match (yield from source.peek()):
                case "}":
                    break
                case "<":
                    yield from source.literal(quote)
                    key = yield from source.until(quote)
                    yield from source.literal(quote)
                case '"':
                    key = json_text.decode((yield from source.json_string()))
                case _:
                    key = (yield from source.until(":", ",", "}")).strip()
            yield from source.space()
            yield from source.literal(":")
            yield from source.space()
            repeated = self.member(json_text.encodable(key), known)
            yield from self._value(quote, depth - 1)
            self.member_end(repeated)
            if (yield from self._separator("}")):
                break
        yield from source.literal("}")
        self.object_end(known)

    def _array(self, quote: str, depth: int) -> Generator[None, None, None]:
        source = self.source
        yield from source.literal("[")
        self.defer("[")
        following = ""
        yield from source.space()
        while (yield from source.peek()) != "]":
            self.defer(following)
            following = ", "
            yield from self._value(quote, depth - 1)
            if (yield from self._separator("]")):
                break
        yield from source.literal("]")
        self.argument("]")

    def _separator(self, end: str) -> Generator[None, None, bool]:
        """Read a comma; True where `end` stands, which stays unread."""
        source = self.source
        yield from source.space()
        if (yield from source.peek()) == end:
            return True
        yield from source.literal(",")
        yield from source.space()
        return False
