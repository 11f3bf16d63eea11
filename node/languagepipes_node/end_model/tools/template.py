"""What a chat template does with tools and calls, found out by rendering, and messages in the form that it wants."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from languagepipes_node.end_model.text import ChatTemplate, TemplateError
from languagepipes_node.end_model.tools.arguments import value_of
from languagepipes_node.end_model.tools.written_calls import FORMATS, with_calls

_USER = {"role": "user", "content": "probe"}
_FUNCTION = "probe_function"
_KEY = "probe_key"
_PARAMETERS = {"type": "object", "properties": {_KEY: {"type": "string", "description": "probe"}}}
_BARE_TOOL = {"type": "function", "function": {"name": _FUNCTION, "parameters": _PARAMETERS}}
_TOOL = {
    "type": "function",
    "function": {"name": _FUNCTION, "description": "probe", "parameters": _PARAMETERS},
}
_NINE = re.compile("[A-Za-z0-9]{9}")

Arguments = Literal["object", "string"]


@dataclass(frozen=True)
class TemplateTools:
    """takes_tools: it writes the request's tools. shows_calls: it writes earlier calls and their results, of which it
    wants `arguments` as an object or as JSON text, and null or "" for a content that there is none of. one_call: a
    message may hold one call only. nine_character_ids: it refuses other ids. needs_description: of each tool.
    calls_in_content: it writes content alone, so calls are written into it in the format of this family.
    """

    takes_tools: bool = False
    shows_calls: bool = False
    arguments: Arguments = "object"
    null_content: str | None = ""
    one_call: bool = False
    nine_character_ids: bool = False
    needs_description: bool = False
    calls_in_content: str | None = None

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """A request's tools in the form that the template wants."""
        if not self.needs_description:
            return list(tools)
        return [{**tool, "function": {"description": "", **tool["function"]}} for tool in tools]

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages in OpenAI's form (`arguments` a JSON text, thinking as `reasoning`), as the template wants them."""
        written: list[dict[str, Any]] = []
        names: dict[str, str] = {}  # of the functions, by their calls' ids
        messages = _in_order(messages)
        for message in self._of_one_call(messages) if self.one_call else messages:
            changed = dict(message)
            if thinking := changed.pop("reasoning", None):
                changed |= {"reasoning": thinking, "reasoning_content": thinking}
                if not (message.get("tool_calls") and message.get("content")):
                    changed["thinking"] = thinking  # gpt-oss's template refuses it beside both
            if message["role"] == "tool":
                changed["name"] = names.get(message["tool_call_id"], "")
                changed["tool_call_id"] = self._id(message["tool_call_id"])
            elif calls := message.get("tool_calls"):
                names |= {call["id"]: call["function"]["name"] for call in calls}
                if self.calls_in_content is not None:
                    del changed["tool_calls"]
                    changed["content"] = with_calls(self.calls_in_content, message.get("content") or "", calls)
                    written.append(changed)
                    continue
                changed["tool_calls"] = [self._call(call) for call in calls]
                changed["content"] = message.get("content") or self.null_content
            written.append(changed)
        return written

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        if self.arguments == "object":
            arguments = value_of(arguments)
        return {**call, "id": self._id(call["id"]), "function": {**function, "arguments": arguments}}

    def _id(self, given: str) -> str:
        if not self.nine_character_ids or _NINE.fullmatch(given):
            return given
        return hashlib.sha256(given.encode()).hexdigest()[:9]

    def _of_one_call(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Each message of several calls as several messages, each with its result behind it."""
        split: list[Mapping[str, Any]] = []
        taken: set[int] = set()
        for place, message in enumerate(messages):
            calls = message.get("tool_calls") or ()
            if len(calls) < 2:
                if place not in taken:
                    split.append(message)
                continue
            for number, call in enumerate(calls):
                first = message if not number else {"role": message["role"], "content": None}
                split.append({**first, "tool_calls": [call]})
                for later in range(place + 1, min(len(messages), place + 1 + len(calls))):
                    if messages[later].get("tool_call_id") == call["id"]:
                        split.append(messages[later])
                        taken.add(later)
        return split


def _in_order(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Results in the order of their calls: most templates write no ids, so that the model knows them by their places
    alone."""
    ordered: list[Mapping[str, Any]] = []
    results: list[Mapping[str, Any]] = []
    places: dict[str, int] = {}
    for message in (*messages, None):
        if message is not None and message["role"] == "tool":
            results.append(message)
            continue
        ordered += sorted(results, key=lambda result: places.get(result["tool_call_id"], len(places)))
        results = []
        if message is not None:
            places = {call["id"]: place for place, call in enumerate(message.get("tool_calls") or ())}
            ordered.append(message)
    return ordered


def probe(template: ChatTemplate, family: str | None = None) -> TemplateTools:
    """Render a few small conversations, and look at what is written. Takes some milliseconds. family: of the model's
    calls, if it is known."""
    takes_tools, needs_description = False, False
    if "tools" in template.variables and _FUNCTION in _rendered(template, [_USER], _TOOL):
        takes_tools = True
        needs_description = _FUNCTION not in _rendered(template, [_USER], _BARE_TOOL)
    tool = _TOOL if takes_tools else None
    forms: tuple[Arguments, ...] = ("object", "string")
    for null_content in ("", None):
        for arguments in forms:
            found = TemplateTools(takes_tools, True, arguments, null_content, needs_description=needs_description)
            if _shows(template, found, ["probe0001"], tool):
                return TemplateTools(
                    takes_tools,
                    True,
                    arguments,
                    null_content,
                    one_call=not _shows(template, found, ["probe0001", "probe0002"], tool),
                    nine_character_ids=not _shows(template, found, ["call_probe_0001"], tool),
                    needs_description=needs_description,
                )
    if family in FORMATS:
        found = TemplateTools(takes_tools, True, needs_description=needs_description, calls_in_content=family)
        if _shows(template, found, ["probe0001", "probe0002"], tool):
            return found
    return TemplateTools(takes_tools, needs_description=needs_description)


def _shows(template: ChatTemplate, form: TemplateTools, ids: Sequence[str], tool: Mapping[str, Any] | None) -> bool:
    """Whether calls and their results are written in full, and not as Python or as JSON in a JSON string."""
    calls = [
        {"id": id, "type": "function", "function": {"name": _FUNCTION, "arguments": json.dumps({_KEY: f"value {id}"})}}
        for id in ids
    ]
    results = [{"role": "tool", "tool_call_id": id, "content": f"result {id}"} for id in ids]
    history = form.messages([_USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results])
    text = _added(_rendered(template, [_USER], tool), _rendered(template, history, tool))
    written = all(f"value {id}" in text and f"result {id}" in text for id in ids)
    return written and f"'{_KEY}'" not in text and f'\\"{_KEY}' not in text and "None" not in text


def _added(before: str, text: str) -> str:
    """What of `text` is not in `before` at either end: there the template speaks of its own, also of "None"."""
    begin = _alike(before, text)
    end = _alike(before[begin:][::-1], text[begin:][::-1])
    return text[begin : len(text) - end]


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _rendered(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tool: Mapping[str, Any] | None) -> str:
    """Empty where the template refuses."""
    try:
        return template.render(messages, {}, None if tool is None else [tool])
    except TemplateError:
        return ""
