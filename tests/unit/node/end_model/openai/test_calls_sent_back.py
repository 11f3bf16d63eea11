"""What a parser gives out as a call is accepted when a client sends it back, if it is JSON."""

from __future__ import annotations

import json

import pytest
from languagepipes_node.end_model.openai.errors import InvalidRequest
from languagepipes_node.end_model.openai.reading import json_object_text
from languagepipes_node.end_model.tools.arguments import is_object
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
def test_arguments_are_accepted_in_a_history_if_and_only_if_they_are_json(value):
    text = f'{{"a": {value}}}'
    parser = FAMILIES["hermes"].make({"now": {}})
    events = parser.feed(f'<tool_call>{{"name": "now", "arguments": {text}}}</tool_call>') + parser.finish()
    [given] = [event.text for event in events if isinstance(event, ArgumentText)]
    if is_object(given):
        assert json_object_text(given, "arguments") == given
        assert isinstance(json.loads(given), dict)
        assert given == text.replace("\\ud800", "\\ufffd")
    else:
        assert given == text
        with pytest.raises(InvalidRequest, match="JSON object"):
            json_object_text(given, "arguments")


def test_half_a_surrogate_pair_is_not_accepted():
    with pytest.raises(InvalidRequest, match="JSON object"):
        json_object_text('{"a": "\\ud800"}', "arguments")
