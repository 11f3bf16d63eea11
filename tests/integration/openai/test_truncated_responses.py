"""`truncation: auto`: a conversation that is too long loses its oldest turns, whole, and no more than it must."""

from __future__ import annotations

import re

import httpx
import pytest
from languagepipes_node.end_model.openai.message_schemas import ChatMessage
from languagepipes_node.end_model.openai.responses.truncation import parts_to_drop
from languagepipes_node.end_model.openai.tool_schemas import ToolCall
from languagepipes_node.end_model.openai.turns import PlacedMessage
from support import chat_templates
from support.scripted_engine import saying
from support.tool_model import codec_of

TOOL = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def call(id):
    return {"type": "function_call", "call_id": id, "name": "now", "arguments": "{}"}


def result(id, output):
    return {"type": "function_call_output", "call_id": id, "output": output}


def ask(served, **body):
    return httpx.post(served.url + "/v1/responses", json={"model": "tiny", "truncation": "auto", **body})


def prompt_of(served) -> str:
    return served.codec.decode(served.engine.submissions[-1].prompt)


def turns(count):
    return [
        item for number in range(count) for item in (user(f"question {number} " * 6), assistant(f"answer {number}"))
    ]


def test_the_oldest_turns_are_left_out_and_as_few_as_can_be(serve):
    served = serve("Hi", max_context_length=512)
    conversation = [{"role": "system", "content": "Be brief."}, *turns(20), user("and now?")]
    answer = ask(served, input=conversation, instructions="You are kind.", max_output_tokens=50)
    assert answer.status_code == 200, answer.text
    assert answer.json()["truncation"] == "auto"
    prompt = prompt_of(served)
    kept = [number for number in range(20) if f"question {number} " in prompt]
    assert kept == list(range(kept[0], 20))
    assert 0 < kept[0] < 19
    assert [int(number) for number in re.findall(r"answer (\d+)", prompt)] == kept
    assert "You are kind." in prompt
    assert "Be brief." in prompt
    assert "and now?" in prompt
    length = len(served.engine.submissions[-1].prompt)
    assert length <= 512 - 50
    # One turn more would not have fitted.
    one_more = [conversation[0], *conversation[1 + 2 * (kept[0] - 1) :]]
    refused = ask(served, input=one_more, instructions="You are kind.", max_output_tokens=50, truncation="disabled")
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_what_fits_is_left_as_it_is(serve):
    served = serve("Hi", max_context_length=512)
    for truncation in ("auto", "disabled"):
        assert ask(served, input=[*turns(2), user("now?")], truncation=truncation).status_code == 200
    first, second = served.engine.submissions
    assert first.prompt == second.prompt


def test_a_conversation_goes_on_beyond_the_context_and_all_of_it_stays_stored(serve):
    served = serve("Hi", max_context_length=256)
    id = None
    for number in range(12):
        answer = ask(served, input=f"question {number} " * 6, previous_response_id=id, max_output_tokens=20)
        assert answer.status_code == 200, answer.text
        id = answer.json()["id"]
    assert "question 11 " in prompt_of(served)
    assert "question 0 " not in prompt_of(served)
    refused = ask(served, input="more", previous_response_id=id, truncation="disabled")
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_results_go_with_their_calls_and_the_newest_stay(serve):
    codec = codec_of(chat_templates.HERMES)
    served = serve(saying(codec, "Noon"), codec=codec, max_context_length=800)
    loop = [item for number in range(30) for item in (call(f"c{number}"), result(f"c{number}", f"tick {number} " * 6))]
    answer = ask(served, input=[*turns(3), user("what time?"), *loop], tools=[TOOL], max_output_tokens=20)
    assert answer.status_code == 200, answer.text
    prompt = prompt_of(served)
    kept = [number for number in range(30) if f"tick {number} " in prompt]
    assert kept == list(range(kept[0], 30))
    assert kept[0] > 0
    assert prompt.count("[tool]") == len(kept)
    assert prompt.count('<tool_call>\n{"name": "now"') == len(kept)
    assert "what time?" in prompt
    assert "question" not in prompt


@pytest.mark.parametrize("fields", [{"input": "word " * 2000}, {"input": "hi", "instructions": "word " * 2000}])
def test_what_must_stay_and_is_too_long_is_refused(serve, fields):
    answer = ask(serve("Hi", max_context_length=256), **fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_what_may_be_left_out_is_in_whole_turns():
    def placed(*roles):
        calls = (ToolCall("a", "now", "{}"),)
        return [
            PlacedMessage(ChatMessage(role, "x", calls if role == "assistant" else ()), f"input[{n}]")
            for n, role in enumerate(roles)
        ]

    assert parts_to_drop(placed("system", "user")) == []
    assert parts_to_drop(placed("system", "user", "assistant", "user")) == [(1, 2)]
    assert parts_to_drop(placed("assistant", "tool", "developer", "user", "tool", "user")) == [(0, 1), (3, 4)]
    assert parts_to_drop(placed("user", "user", "assistant", "tool", "tool", "assistant", "tool")) == [(0,), (2, 3, 4)]
    assert parts_to_drop(placed("assistant", "assistant")) == [(0,)]
    assert parts_to_drop([]) == []
