"""vLLM's structural tags as a grammar: any text, in which whatever follows a trigger is one of the structures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from languagepipes_node.end_model.structured.constraint import Constraint, ConstraintError, schema_text


@dataclass(frozen=True)
class StructuralTag:
    """`begin`, then JSON that matches `schema`, then `end`."""

    begin: str
    schema: dict[str, Any]
    end: str


def grammar_of_tags(tags: Sequence[StructuralTag], triggers: Sequence[str]) -> Constraint:
    """The text up to the first of the triggers is free. Raises ConstraintError if a tag begins with none of them."""
    rules = []
    for place, tag in enumerate(tags):
        trigger = next((trigger for trigger in triggers if tag.begin.startswith(trigger)), None)
        if trigger is None:
            raise ConstraintError("It begins with none of the triggers.", path=f".structures[{place}].begin")
        rest = tag.begin[len(trigger) :]
        parts = [f"trigger_{place}", _string(rest), f"%json {schema_text(tag.schema)}", _string(tag.end)]
        rules.append(f"trigger_{place}[lazy]: TEXT {_string(trigger)}")
        rules.append(f"tag_{place}: " + " ".join(part for part in parts if part))
    choices = " | ".join(f"tag_{place}" for place in range(len(tags)))
    return Constraint.lark("\n".join([f"start: ({choices})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/", *rules]))


def _string(text: str) -> str:
    """`text` as a string of the grammar; nothing for nothing."""
    return json.dumps(text, ensure_ascii=False) if text else ""
