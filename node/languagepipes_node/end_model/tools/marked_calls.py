"""Formats that mark each argument, or the call's parts, with texts of their own: Qwen3-Coder, GLM, DeepSeek, Gemma."""

from __future__ import annotations

import re
from collections.abc import Generator

from languagepipes_node.end_model.tools import json_text
from languagepipes_node.end_model.tools.parser import ToolParser
from languagepipes_node.end_model.tools.source import Ended, Malformed

_NAME = re.compile(r"[\w.-]{1,64}")  # longer ones are no tools; what is looked at anew with each piece has an end
_SCALAR = re.compile(r"[^\s,{}\[\]<]{1,256}")
_MAX_DEPTH = 64


class _UntypedParser(ToolParser):
    """Arguments that are not marked as strings or as something else: the tool's schema decides."""

    def typed(self, name: str, argument: str, raw: str) -> str:
        """The argument as JSON."""
        schema = self.tools.get(name, {})
        properties = schema.get("properties")
        return json_text.typed(raw, properties.get(argument) if isinstance(properties, dict) else None, schema)


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
        arguments: dict[str, str] = {}
        yield from source.space()
        while (yield from source.literal("<parameter=", "</function>")) == "<parameter=":
            key = (yield from source.until(">", "\n")).strip()
            yield from source.literal(">")
            raw = yield from self._value(self._properties(name) - {key, *arguments})
            arguments[key] = self.typed(name, key, raw)
        self.call(self.checked(name, json_text.object_text(arguments)))

    def _properties(self, name: str) -> set[str]:
        properties = self.tools.get(name, {}).get("properties")
        return set(properties) if isinstance(properties, dict) else set()

    def _value(self, open_keys: set[str]) -> Generator[None, None, str]:
        """Up to a `</parameter>` with another parameter or the function's end behind it: values may hold such tags.
        Where that is left out, up to a line that begins one of `open_keys`, the arguments that may still come."""
        source = self.source
        raw = ""
        while True:
            raw += yield from source.until("</parameter>", "\n<parameter=")
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
                return raw.removeprefix("\n").removesuffix("\n")
            raw += mark
            source.at = end if mark == "</parameter>" else end + len(mark)

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
        arguments: dict[str, str] = {}
        while (yield from source.literal("<arg_key>", "</tool_call>")) == "<arg_key>":
            key = (yield from source.until("</arg_key>")).strip()
            yield from source.literal("</arg_key>")
            yield from source.space()
            yield from source.literal("<arg_value>")
            raw = yield from source.until("</arg_value>")
            yield from source.literal("</arg_value>")
            yield from source.space()
            arguments[key] = self.typed(name, key, raw)
        self.call(self.checked(name, json_text.object_text(arguments)))


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
        if (yield from source.peek()) == "{":
            self.call(self.checked(name, (yield from source.json())))
        else:
            name = (yield from source.until("\n", _CALL_END)).strip()
            yield from source.space()
            yield from source.literal("```json")
            yield from source.space()
            self.call(self.checked(name, (yield from source.json())))
            yield from self.closing("```")
        yield from self.closing(_CALL_END)


class GemmaParser(ToolParser):
    """`<start_function_call>call:NAME{KEY:<escape>TEXT<escape>,KEY:1}<end_function_call>` of FunctionGemma
    (https://ai.google.dev/gemma/docs/functiongemma), and the same with Gemma 4's marks. Older Gemma models have no
    format of their own."""

    starts = ("<start_function_call>", "<|tool_call>")
    markers = ("<end_function_call>", "<tool_call|>", "<escape>", '<|"|>')

    def calls(self) -> Generator[None, None, None]:
        gemma4 = (yield from self.source.literal(*self.starts)) == "<|tool_call>"
        yield from self.source.space()
        yield from self.source.literal("call:")
        name = yield from self.source.name(_NAME)
        yield from self.source.space()
        if (yield from self.source.peek()) != "{":
            raise Malformed
        quote = '<|"|>' if gemma4 else "<escape>"
        self.call(self.checked(name, (yield from self._value(quote, _MAX_DEPTH))))
        yield from self.closing("<tool_call|>" if gemma4 else "<end_function_call>")

    def _value(self, quote: str, depth: int) -> Generator[None, None, str]:
        source = self.source
        if not depth:
            raise Malformed
        match (yield from source.peek()):
            case "{":
                return (yield from self._object(quote, depth))
            case "[":
                return (yield from self._array(quote, depth))
            case "<":
                return json_text.string((yield from self._quoted(quote)))
            case '"':
                return (yield from self._json_string())
        return json_text.typed((yield from source.name(_SCALAR)), None)

    def _object(self, quote: str, depth: int) -> Generator[None, None, str]:
        source = self.source
        yield from source.literal("{")
        found: dict[str, str] = {}
        while True:
            yield from source.space()
            match (yield from source.peek()):
                case "}":
                    break
                case "<":
                    key = yield from self._quoted(quote)
                case '"':
                    key = json_text.decode((yield from self._json_string()))
                case _:
                    key = (yield from source.until(":", ",", "}")).strip()
            yield from source.space()
            yield from source.literal(":")
            yield from source.space()
            found[key] = yield from self._value(quote, depth - 1)
            if (yield from self._separator("}")):
                break
        yield from source.literal("}")
        return json_text.object_text(found)

    def _array(self, quote: str, depth: int) -> Generator[None, None, str]:
        source = self.source
        yield from source.literal("[")
        found: list[str] = []
        yield from source.space()
        while (yield from source.peek()) != "]":
            found.append((yield from self._value(quote, depth - 1)))
            if (yield from self._separator("]")):
                break
        yield from source.literal("]")
        return "[" + ", ".join(found) + "]"

    def _separator(self, end: str) -> Generator[None, None, bool]:
        """Read a comma; True where `end` stands, which stays unread."""
        source = self.source
        yield from source.space()
        if (yield from source.peek()) == end:
            return True
        yield from source.literal(",")
        yield from source.space()
        return False

    def _quoted(self, quote: str) -> Generator[None, None, str]:
        yield from self.source.literal(quote)
        text = yield from self.source.until(quote)
        yield from self.source.literal(quote)
        return text

    def _json_string(self) -> Generator[None, None, str]:
        text = yield from self.source.json_string()
        json_text.decode(text)
        return text
