"""Constraints as grammars in llguidance's dialect of Lark, and checks of those that clients write.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from languagepipes_node.end_model.structured.constraint import Constraint, ConstraintError
from languagepipes_node.end_model.structured.json_schema import MAX_PATTERN, Schema, check

# A blank, or a new line and its indentation: a small model that may write any whitespace can go on for ever.
WHITESPACE = r"\n[ \t]{0,64}| "
_NO_FORCING = '%llguidance {"no_forcing": true}\n'
_MAX_CHOICES = 10_000
_MAX_RULES = 2_000
# Without its schemas. Compiling takes in proportion to the square of a terminal's length.
_MAX_CHARACTERS = 32 * 1024
# Possessive, so that no grammar takes longer than in proportion to its length.
_NAME = r"^[ \t]*+[?!]?[A-Za-z_][\w-]*+(?:\.-?\d++)?+[ \t]*+"
_RULE = re.compile(_NAME + r"(?:\[[^\]\n]*+\])?+[ \t]*+:", re.MULTILINE)
_EMBEDDED = re.compile(r"%json\s*")
_OPTIONS = re.compile(r"%llguidance\b")
_RULE_OPTIONS = re.compile(_NAME + r"\[([^\]\n]*+)", re.MULTILINE)
_OPTION_NOT_KEPT = re.compile(r"\b(stop|stop_capture|max_tokens|temperature)\s*+=")
_IMPORT = re.compile(r"^[ \t]*+%import[ \t]++(?!common\b)", re.MULTILINE)


def grammar_of(constraint: Constraint) -> str:
    """The grammar to compile. Raises ConstraintError for what is wrong, or known not to be kept."""
    match constraint.kind:
        case "json_schema":
            return _NO_FORCING + "start: " + embedded(check(json.loads(constraint.text)))
        case "regex":
            return _NO_FORCING + "start: /" + _inside_slashes(constraint.text) + "/"
        case "choice":
            return _NO_FORCING + "start: CHOICE\nCHOICE: " + _alternatives(json.loads(constraint.text))
        case "grammar":
            return _NO_FORCING + _checked(_within_limits(_as_lark(_without_options(constraint.text))))
        case "lark":
            return _NO_FORCING + _checked(_without_options(constraint.text))


def embedded(schema: Schema) -> str:
    """A schema that was checked, as a rule's expansion."""
    if isinstance(schema, bool):
        schema = {}
    return "%json " + orjson.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}).decode()


def literal(text: str) -> str:
    """`text` as a string of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def _inside_slashes(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise ConstraintError(
            f"The regular expression has {len(pattern)} characters, at most {MAX_PATTERN} are compiled.",
            unsupported=True,
        )
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise ConstraintError("The regular expression ends with a backslash.")
    return regex_to_lark(pattern, "")


def _without_options(grammar: str) -> str:
    if _OPTIONS.search(grammar):
        raise ConstraintError("'%llguidance' is not kept: the server sets the options.", unsupported=True)
    return grammar


def _as_lark(grammar: str) -> str:
    """Lark as it is, and GBNF in Lark's spelling."""
    if "::=" not in grammar:
        return grammar
    if len(grammar) > _MAX_CHARACTERS:
        raise ConstraintError(
            f"The grammar has {len(grammar)} characters, at most {_MAX_CHARACTERS} are compiled.", unsupported=True
        )
    try:
        return str(any_to_lark(grammar))
    except Exception as error:  # the converter raises what it happens to
        raise ConstraintError(f"The grammar is neither Lark nor GBNF that could be read: {error}.") from None


def _alternatives(choices: list[str]) -> str:
    if len(choices) > _MAX_CHOICES:
        raise ConstraintError(f"There are {len(choices)} choices, at most {_MAX_CHOICES} are kept.", unsupported=True)
    for place, choice in enumerate(choices):
        if not choice:
            raise ConstraintError("A choice is empty, expected some text.", path=f"[{place}]")
    return " | ".join(literal(choice) for choice in dict.fromkeys(choices))


def _within_limits(grammar: str) -> str:
    """A grammar that a client wrote. The server's own are as long as the tools that they are of; what they take from
    clients is literal text, which compiles at once."""
    if (rules := len(_RULE.findall(grammar))) > _MAX_RULES:
        raise ConstraintError(f"The grammar has {rules} rules, at most {_MAX_RULES} are kept.", unsupported=True)
    own = len(grammar) - sum(end - start for start, end, _ in _schemas(grammar))
    if own > _MAX_CHARACTERS:
        raise ConstraintError(
            f"The grammar has {own} characters beside its schemas, at most {_MAX_CHARACTERS} are compiled.",
            unsupported=True,
        )
    return grammar


def _checked(grammar: str) -> str:
    """A grammar whose options are those that are kept, and its schemas checked and written again."""
    for options in _RULE_OPTIONS.finditer(grammar):
        if option := _OPTION_NOT_KEPT.search(options[1]):
            raise ConstraintError(f"The option '{option[1]}' of a rule is not kept.", unsupported=True)
    if _IMPORT.search(grammar):
        raise ConstraintError("'%import' is kept of 'common' only.", unsupported=True)
    return _with_schemas(grammar, lambda schema: embedded(check(schema)))


def _schemas(grammar: str) -> Iterator[tuple[int, int, Any]]:
    """(start, end, schema) of the JSON of each `%json {…}`. Raises ConstraintError."""
    place = 0
    while match := _EMBEDDED.search(grammar, place):
        try:
            schema, place = json.JSONDecoder().raw_decode(grammar, match.end())
        except (ValueError, RecursionError):
            raise ConstraintError("The text after '%json' in the grammar is no JSON.") from None
        yield match.end(), place, schema


def _with_schemas(grammar: str, write: Callable[[Any], str]) -> str:
    """The grammar with each `%json {…}` written again."""
    parts, place = [], 0
    for start, end, schema in _schemas(grammar):
        try:
            parts += [grammar[place:start].rstrip().removesuffix("%json"), write(schema)]
        except ConstraintError as error:
            raise ConstraintError(
                f"A schema in the grammar: {error.message}", path=error.path, unsupported=error.unsupported
            ) from None
        place = end
    return "".join([*parts, grammar[place:]])
