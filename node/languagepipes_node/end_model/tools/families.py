"""Which parser reads a model's calls: named in the settings, or known by the marks in its chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from languagepipes_node.end_model.tools.harmony import HarmonyParser
from languagepipes_node.end_model.tools.json_calls import HermesParser, Llama3Parser, MistralParser
from languagepipes_node.end_model.tools.marked_calls import DeepSeekParser, GemmaParser, GlmParser, QwenXmlParser
from languagepipes_node.end_model.tools.parser import AnswerReader, ToolParser


class Family(NamedTuple):
    """make: a parser of one answer. markers: texts that it must see, though they may be special tokens."""

    make: Callable[..., AnswerReader]
    markers: frozenset[str]
    marks: tuple[tuple[str, ...], ...]  # a template with all of one of these is of this family


def _family(parser: type[ToolParser] | type[HarmonyParser], *marks: tuple[str, ...]) -> Family:
    return Family(parser, frozenset((*parser.starts, *parser.markers)), marks)


# In this order: a mark of one family may be a part of another's format.
FAMILIES: Mapping[str, Family] = {
    "harmony": _family(HarmonyParser, ("<|channel|>", "<|message|>")),
    "deepseek": _family(DeepSeekParser, ("<｜tool▁calls▁begin｜>",), ("<｜tool▁call▁begin｜>",)),
    "mistral": _family(MistralParser, ("[TOOL_CALLS]",)),
    "gemma": _family(GemmaParser, ("<start_function_call>",), ("<|tool_call>",)),
    "glm": _family(GlmParser, ("<arg_key>",)),
    "qwen-xml": _family(QwenXmlParser, ("<function=",)),
    "hermes": _family(HermesParser, ("<tool_call>",)),
    "llama3-json": _family(Llama3Parser, ("<|python_tag|>",), ("<|start_header_id|>", '"parameters"')),
}


def detect(template: str) -> str | None:
    """The name of the family whose marks a chat template's text has."""
    for name, family in FAMILIES.items():
        if any(all(mark in template for mark in marks) for marks in family.marks):
            return name
    return None
