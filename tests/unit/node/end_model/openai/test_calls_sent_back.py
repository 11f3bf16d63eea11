"""What a parser gives out as a call is accepted when a client sends it back."""

from __future__ import annotations

import json

import pytest
from languagepipes_node.end_model.openai.errors import InvalidRequest
from languagepipes_node.end_model.openai.reading import json_object_text
from languagepipes_node.end_model.tools.events import ArgumentText
from languagepipes_node.end_model.tools.families import FAMILIES


@pytest.mark.parametrize(
    "value",
    [
        1,
        10**30,
        "1e400",
        "1E-400",
        "9" * 5000,
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        "NaN",
        "-0",
        "[" * 900 + "]" * 900,
        "[" * 1100 + "]" * 1100,
    ],
    ids=lambda value: str(value)[:12],
)
def test_arguments_are_given_out_if_and_only_if_they_are_accepted_in_a_history(value):
    text = f'{{"a": {value}}}'
    parser = FAMILIES["hermes"].make({"now": {}})
    events = parser.feed(f'<tool_call>{{"name": "now", "arguments": {text}}}</tool_call>') + parser.finish()
    given = [event.text for event in events if isinstance(event, ArgumentText)]
    if given:
        assert given == [json_object_text(text, "arguments")]
        assert isinstance(json.loads(text), dict)
    else:
        with pytest.raises(InvalidRequest, match="JSON object"):
            json_object_text(text, "arguments")
