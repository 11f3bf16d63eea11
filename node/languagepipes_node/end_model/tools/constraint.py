"""What an answer must match so that its calls are of the tools offered, with arguments that match their schemas: a
grammar in llguidance's dialect of Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), by family.

What stands around the calls is part of it: thinking before, content between or in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import orjson

from languagepipes_node.end_model.reasoning.splitter import Marks
from languagepipes_node.end_model.structured import Constraint, ConstraintError
from languagepipes_node.end_model.structured.json_schema import check
from languagepipes_node.end_model.structured.lark import grammar_of
from languagepipes_node.end_model.tools import json_text
from languagepipes_node.end_model.tools.gemma_grammar import GemmaArguments

_ANY_OBJECT = {"type": "object"}
# Names with a meaning of their own in a grammar.
_TERMINALS = r"""TEXT: /(.|\n)*/
BLANK: /[ \n]{1,4}/
KEY: /[^<>\n]{1,64}/
PLAIN: TEXT & ~/((.|\n)*\n)?<parameter=(.|\n)*/
"""
_OPTIONS = re.compile(r"^%llguidance .*$", re.MULTILINE)
_ANNOTATIONS = {"description", "title", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"}
# What may stand at an object's top where each argument is written by itself.
_OF_ARGUMENTS = {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema"}


@dataclass(frozen=True)
class CalledTool:
    """place: among the request's tools. held: whether the arguments must match `parameters`. strict: and are refused if
    they cannot be held; otherwise they are then some JSON object."""

    place: int
    name: str
    parameters: Mapping[str, Any]
    held: bool
    strict: bool = True


class ToolConstraintError(ConstraintError):
    """A tool's schema cannot be kept. place: of the tool in the request."""

    def __init__(self, error: ConstraintError, place: int) -> None:
        super().__init__(error.message, path=error.path, unsupported=error.unsupported)
        self.place = place


@dataclass(frozen=True)
class AnswerShape:
    """How a model's answers are written.

    family: of its calls; None: it makes none. special: the ids of special tokens that are marks, or the beginnings of
    some. template: the chat template's text, where a family's models differ. thinking: inside or possible.
    """

    family: str | None
    special: Mapping[str, int]
    template: str
    harmony: bool = False
    marks: Marks | None = None
    inside: bool = False


def constraint_for(
    shape: AnswerShape,
    tools: Sequence[CalledTool],
    *,
    mode: Literal["auto", "required"],
    single: bool,
    content: Constraint | None,
) -> Constraint | None:
    """The constraint of a whole answer; None where any text will do. tools: those that may be called, perhaps none.
    content: what content must match.

    Raises ConstraintError, and ToolConstraintError for a tool's schema, if it cannot be kept.
    """
    if content is None and (not tools or (mode == "auto" and not any(tool.held for tool in tools))):
        return None
    writer = _Writer(shape)
    if not tools:
        assert content is not None  # noqa: S101 (see above)
        if shape.marks is None and not shape.harmony:
            return content
        return writer.grammar(writer.content(content))
    calls = writer.calls(tools, single=single)
    if mode == "required":
        return writer.grammar(calls)
    if content is not None:
        if shape.family == "llama3-json":
            raise ConstraintError(
                "Content and calls of tools are both JSON objects in this model's answers: leave one out.",
                unsupported=True,
            )
        return writer.grammar(f"{calls} | {writer.content(content)}")
    return writer.grammar(writer.free(calls), free=True)


class _Layout(NamedTuple):
    """What stands before all calls, before each, between them, and behind all."""

    first: str
    each: str
    between: str
    last: str


class _Writer:
    def __init__(self, shape: AnswerShape) -> None:
        self._shape = shape
        self._rules: list[str] = []

    def grammar(self, answer: str, *, free: bool = False) -> Constraint:
        """answer: the expansion of what comes behind the thinking. free: it may begin with white space anyway."""
        if self._shape.harmony:
            start = "start: thinking? answer"
            self._rules.append(f"thinking: {self._message('analysis')} {self._up_to('<|end|>')} {self._next_message()}")
        else:
            start = _row("start:", self._thinking(), "" if free else "BLANK?", "answer")
        return Constraint.lark("\n".join([start, f"answer: {answer}", _TERMINALS, *self._rules]))

    def content(self, content: Constraint) -> str:
        if content.kind == "json_schema":
            rule = "%json " + content.text
        else:
            rule = "%lark {\n" + _OPTIONS.sub("", grammar_of(content)) + "\n}"
        self._rules.append("content: " + rule)
        return f"{self._message('final')} content" if self._shape.harmony else "content"

    def calls(self, tools: Sequence[CalledTool], *, single: bool) -> str:
        """One call or more, as the family writes them."""
        call = _FAMILIES[self._shape.family or ""]
        names = []
        for number, tool in enumerate(tools):
            before = len(self._rules)
            try:
                rule = call(self, tool)
            except ConstraintError as error:
                if tool.strict:
                    raise ToolConstraintError(error, tool.place) from None
                del self._rules[before:]
                rule = call(self, replace(tool, held=False))
            self._rules.append(f"call_{number}: {rule}")
            names.append(f"call_{number}")
        self._rules.append("call: " + " | ".join(names))
        layout = self._layout()
        again = "" if single or self._shape.harmony else f"({layout.between} {layout.each} call)*"
        return _row(layout.first, layout.each, "call", again, layout.last)

    def free(self, calls: str) -> str:
        """Content with calls in it wherever it has their first mark. calls: what `calls` returned."""
        shape = self._shape
        if shape.harmony:
            return f"{calls} | {self._message('final')} TEXT"
        opener = self.mark(self._opener)
        if shape.family == "llama3-json":
            # Not what is read as a call wherever it stands; and at the beginning any object is.
            no_call = r'(.|\n)*(\{"name"|<\|python_tag\|>)(.|\n)*'
            self._rules.append(rf"NO_CALL: /[^{{ \n](.|\n)*/ & ~/{no_call}/")
            self._rules.append(f"lead[lazy]: NO_CALL {opener}")
            return f"{calls} | lead {calls.removeprefix(opener)} | NO_CALL |"
        behind = "call" if self._layout().each else calls.removeprefix(opener)
        self._rules.append(f"calls: {behind}")
        lazy = "" if self._opener in shape.special else "[lazy]"
        self._rules.append(f"free{lazy}: TEXT {opener}")
        return "(free calls)* TEXT"

    @property
    def is_gemma4(self) -> bool:
        return self.has("<|tool_call>")

    @property
    def _opener(self) -> str:
        """What a call, or a block of calls, begins with; none in harmony, where each message has a header."""
        if self._shape.family == "gemma":
            return "<|tool_call>" if self.is_gemma4 else "<start_function_call>"
        return _OPENERS.get(self._shape.family or "", "")

    @cached_property
    def gemma(self) -> GemmaArguments:
        quote = '<|"|>' if self.is_gemma4 else "<escape>"
        special = quote in self._shape.special
        # Its templates write names in the order of the alphabet, and so does the model.
        alphabetical = self.has("dictsort")
        return GemmaArguments(self._rules, self.mark, quote=quote, special=special, alphabetical=alphabetical)

    def has(self, text: str) -> bool:
        """Whether the chat template speaks of it."""
        return text in self._shape.template

    def mark(self, text: str) -> str:
        """A mark, which may be a special token, or begin with one."""
        special = self._shape.special
        begin = max((name for name in special if text.startswith(name)), key=len, default="")
        rest = text[len(begin) :]
        return _row(f"<[{special[begin]}]>" if begin else "", _string(rest) if rest else "")

    def arguments(self, tool: CalledTool) -> str:
        """A JSON object."""
        schema = tool.parameters if tool.held else _ANY_OBJECT
        return "%json " + orjson.dumps(check({"type": "object", **schema})).decode()

    def separate_arguments(self, tool: CalledTool, write: Callable[[str, str], str]) -> str:
        """Each argument by itself, in the order of the schema. write: an argument of (name, value with its end)."""
        if not tool.held:
            self._rules.append(f"any_{tool.place}: {write('', self._text_value())}")
            return f"any_{tool.place}*"
        schema = tool.parameters
        for keyword in schema:
            if keyword not in _OF_ARGUMENTS | _ANNOTATIONS:
                raise ConstraintError(
                    f"'{keyword}' of all arguments together is not kept in this model's format.",
                    path=f".{keyword}",
                    unsupported=True,
                )
        properties = schema.get("properties", {})
        check({"type": "object", **schema})
        required = schema.get("required", [])
        parts = []
        for name, inner in properties.items():
            if not re.fullmatch(r"[^<>\n]{1,64}", name):
                raise ConstraintError(
                    "A name with angle brackets or line breaks is not kept in this model's format.",
                    path=f".properties.{name}",
                    unsupported=True,
                )
            value = self._value(inner, schema, f".properties.{name}")
            parts.append(write(name, value) if name in required else f"({write(name, value)})?")
        for name in required:
            if name not in properties:
                raise ConstraintError(
                    f"'{name}' is required and not among the properties, which is not kept in this model's format.",
                    path=".required",
                    unsupported=True,
                )
        return " ".join(parts)

    def _value(self, schema: Any, root: Mapping[str, Any], path: str) -> str:
        types = json_text.types_of(schema, root)
        if "string" not in types and types:
            definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
            return "%json " + orjson.dumps(check({**schema, **definitions})).decode() + " " + self._value_end()
        schema = json_text.resolved(schema, root)
        keywords = set(schema) - _ANNOTATIONS - {"type"} if isinstance(schema, dict) else set()
        if keywords == {"enum"} and all(isinstance(value, str) for value in schema["enum"]):
            return "(" + " | ".join(map(_string, schema["enum"])) + ") " + self._value_end()
        if keywords == {"const"}:
            return f"{_string(schema['const'])} {self._value_end()}"
        alternatives = schema.get("anyOf") or schema.get("oneOf") or [] if isinstance(schema, dict) else []
        bare = all(isinstance(each, dict) and not set(each) - _ANNOTATIONS - {"type"} for each in alternatives)
        simple = types <= {"string", "null", "integer", "number", "boolean"}
        if keywords - {"anyOf", "oneOf"} or not bare or not simple or (keywords and not types):
            raise ConstraintError(
                "Of text, this model's format keeps 'type', 'enum' and 'const' only.", path=path, unsupported=True
            )
        return self._text_value()

    def _text_value(self) -> str:
        """Any text up to the value's end."""
        end = self._ends_value()
        if end in self._shape.special:
            return f"TEXT {self._value_end()}"
        # The reader takes a line that begins a parameter for one whose predecessor lacks its end.
        text = "PLAIN" if self._shape.family == "qwen-xml" else "TEXT"
        rule = f"text_value[lazy]: {text} {self._value_end()}"
        if rule not in self._rules:
            self._rules.append(rule)
        return "text_value"

    def _ends_value(self) -> str:
        return "</arg_value>" if self._shape.family == "glm" else "</parameter>"

    def _value_end(self) -> str:
        return self.mark("</arg_value>") if self._shape.family == "glm" else _string("\n</parameter>\n")

    def _layout(self) -> _Layout:
        opener = self.mark(self._opener) if self._opener else ""
        match self._shape.family:
            case "deepseek":
                return _Layout(opener, "", "", self.mark("<｜tool▁calls▁end｜>"))
            case "mistral" if not self.has("[ARGS]"):
                return _Layout(_row(opener, _string("[")), "", _string(", "), _string("]"))
            case "mistral" | "gemma":
                return _Layout("", opener, "", "")
            case "llama3-json":
                return _Layout("", opener, _string("; "), "")
        return _Layout("", opener, _string("\n"), "")

    def _thinking(self) -> str:
        shape = self._shape
        if shape.marks is None:
            return ""
        self._rules.append(f"thought: {self._up_to(shape.marks.end)}")
        return "thought" if shape.inside else f"({self.mark(shape.marks.begin)} thought)?"

    def _up_to(self, end: str) -> str:
        lazy = "" if end in self._shape.special else "[lazy]"
        self._rules.append(f"thinking_text{lazy}: TEXT {self.mark(end)}")
        return "thinking_text"

    def _message(self, channel: str) -> str:
        return f"{self.mark('<|channel|>')} {_string(channel)} {self.mark('<|message|>')}"

    def _next_message(self) -> str:
        return f"{self.mark('<|start|>')} {_string('assistant')}"


def _hermes(writer: _Writer, tool: CalledTool) -> str:
    head = _string(f'\n{{"name": "{tool.name}", "arguments": ')
    return _row(head, writer.arguments(tool), _string("}\n"), writer.mark("</tool_call>"))


def _llama3(writer: _Writer, tool: CalledTool) -> str:
    return _row(_string(f': "{tool.name}", "parameters": '), writer.arguments(tool), _string("}"))


def _mistral(writer: _Writer, tool: CalledTool) -> str:
    if writer.has("[ARGS]"):
        return _row(_string(tool.name), writer.mark("[ARGS]"), writer.arguments(tool))
    return _row(_string(f'{{"name": "{tool.name}", "arguments": '), writer.arguments(tool), _string("}"))


def _deepseek(writer: _Writer, tool: CalledTool) -> str:
    begin, separator, end = map(writer.mark, ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"))
    if not writer.has("```json"):
        return _row(begin, _string(tool.name), separator, writer.arguments(tool), end)
    fence = _string(f"{tool.name}\n```json\n")
    return _row(begin, _string("function"), separator, fence, writer.arguments(tool), _string("\n```"), end)


def _harmony(writer: _Writer, tool: CalledTool) -> str:
    recipient = _string(f"commentary to=functions.{tool.name} ")
    header = _row(writer.mark("<|channel|>"), recipient, writer.mark("<|constrain|>"), _string("json"))
    return _row(header, writer.mark("<|message|>"), writer.arguments(tool))


def _qwen_xml(writer: _Writer, tool: CalledTool) -> str:
    def argument(name: str, value: str) -> str:
        if name:
            return _row(_string(f"<parameter={name}>\n"), value)
        return _row(_string("<parameter="), "KEY", _string(">\n"), value)

    begin = _string(f"\n<function={tool.name}>\n")
    end = _row(_string("</function>\n"), writer.mark("</tool_call>"))
    return _row(begin, writer.separate_arguments(tool, argument), end)


def _glm(writer: _Writer, tool: CalledTool) -> str:
    broken = _string("\n") + "?"  # GLM 4.5 breaks lines between the parts, later models do not

    def argument(name: str, value: str) -> str:
        key = _row(writer.mark("<arg_key>"), _string(name) if name else "KEY", writer.mark("</arg_key>"))
        return _row(key, broken, writer.mark("<arg_value>"), value, broken)

    return _row(_string(tool.name), broken, writer.separate_arguments(tool, argument), writer.mark("</tool_call>"))


def _gemma(writer: _Writer, tool: CalledTool) -> str:
    arguments = writer.gemma.of(tool.parameters) if tool.held else writer.gemma.any_object()
    end = "<tool_call|>" if writer.is_gemma4 else "<end_function_call>"
    return _row(_string(f"call:{tool.name}"), arguments, writer.mark(end))


_OPENERS = {
    "hermes": "<tool_call>",
    "qwen-xml": "<tool_call>",
    "glm": "<tool_call>",
    "llama3-json": '{"name"',
    "mistral": "[TOOL_CALLS]",
    "deepseek": "<｜tool▁calls▁begin｜>",
}
_FAMILIES: Mapping[str, Callable[[_Writer, CalledTool], str]] = {
    "hermes": _hermes,
    "qwen-xml": _qwen_xml,
    "llama3-json": _llama3,
    "mistral": _mistral,
    "harmony": _harmony,
    "glm": _glm,
    "gemma": _gemma,
    "deepseek": _deepseek,
}


def _string(text: str) -> str:
    """`text` as a string of the grammar."""
    return orjson.dumps(text).decode()


def _row(*parts: str) -> str:
    """Parts of an expansion that follow each other."""
    return " ".join(part for part in parts if part)
