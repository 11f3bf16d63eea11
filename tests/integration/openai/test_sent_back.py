"""What clients make of an answer goes back as it is, and is described as accepted."""

from __future__ import annotations

import httpx
import jsonschema
import pytest
from pydantic import BaseModel
from support.scripted_engine import saying
from support.tool_model import WEATHER, codec_of

QUESTION = {"role": "user", "content": "Weather in Paris?"}
PARIS = '{"city": "Paris"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
FUNCTION = {"name": "get_weather", "arguments": PARIS}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}


class City(BaseModel):
    city: str


def assistant(call=(), function=(), **fields):
    call = {"id": "call_1", "type": "function", "function": FUNCTION | dict(function), **dict(call)}
    return {"role": "assistant", "content": None, "tool_calls": [call], **fields}


@pytest.fixture
def strict_weather():
    function = WEATHER["function"]
    return {"type": "function", "function": {**function, "strict": True}}


def test_a_parsed_call_goes_back(hermes, strict_weather):
    served = hermes(CALL)
    options = {"model": "tiny", "tools": [strict_weather]}
    message = served.client.chat.completions.parse(messages=[QUESTION], **options).choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}
    result = RESULT | {"tool_call_id": message.tool_calls[0].id}
    for sent in (message, message.model_dump()):
        served.client.chat.completions.create(messages=[QUESTION, sent, result], **options)
        assert CALL in served.codec.decode(served.engine.submissions[-1].prompt)


def test_a_parsed_answer_goes_back(hermes):
    served = hermes('{"city": "Paris"}')
    message = served.client.chat.completions.parse(model="tiny", messages=[QUESTION], response_format=City)
    sent = message.choices[0].message.model_dump()
    assert sent["parsed"] == {"city": "Paris"}
    served.client.chat.completions.create(model="tiny", messages=[QUESTION, sent, QUESTION])
    served.client.responses.create(
        model="tiny",
        input=[
            QUESTION,
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "x", "annotations": [], "parsed": {"city": "Paris"}}],
            },
            QUESTION,
        ],
    )


def test_a_parsed_call_of_a_response_goes_back(hermes):
    served = hermes("Sunny.")
    call = {"type": "function_call", "call_id": "a", "parsed_arguments": {"city": "Paris"}, **FUNCTION}
    output = {"type": "function_call_output", "call_id": "a", "output": "sunny"}
    served.client.responses.create(model="tiny", input=[QUESTION, call, output])
    assert PARIS in served.codec.decode(served.engine.submissions[-1].prompt)


THINKS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]<think>"


@pytest.mark.parametrize("text", ["It is Paris.", "It is Paris.</think>", "</think>", ""])
@pytest.mark.parametrize("logprobs", [False, True])
def test_a_streamed_answer_of_thinking_alone_or_of_nothing_goes_back(serve, text, logprobs):
    codec = codec_of(THINKS)
    served = serve(saying(codec, text), codec=codec, max_context_length=4096)
    options = {"model": "tiny", "logprobs": logprobs}
    with served.client.chat.completions.stream(messages=[QUESTION], **options) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.content == ""
    served.client.chat.completions.create(messages=[QUESTION, message, QUESTION], **options)
    prompt = served.codec.decode(served.engine.submissions[-1].prompt)
    assert "[assistant][user]" in prompt


def test_thinking_alone_is_a_message(hermes):
    served = hermes("Sunny.")
    for name in ("reasoning", "reasoning_content"):
        message = {"role": "assistant", "content": None, name: "Hm."}
        served.client.chat.completions.create(model="tiny", messages=[QUESTION, message, QUESTION])
    body = {"model": "tiny", "messages": [QUESTION, {"role": "assistant", "content": None, "reasoning": ""}]}
    response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[1].content")


ACCEPTED = [
    assistant(provider_specific_fields={"refusal": None, "reasoning": "Hm."}),
    assistant(provider_specific_fields=None, thinking_blocks=[], reasoning_details=[], thinking=None),
    assistant(call={"provider_specific_fields": {"a": 1}}, function={"provider_specific_fields": {}}),
    assistant(function={"parsed_arguments": None}, parsed=None),
    assistant(function={"parsed_arguments": [1]}, parsed="x"),
    assistant(name="weather_agent"),
]
REFUSED = [
    (assistant(provider_specific_fields=[]), "provider_specific_fields"),
    (assistant(call={"provider_specific_fields": 1}), "tool_calls[0].provider_specific_fields"),
    (assistant(thinking_blocks=[{"type": "thinking", "thinking": "Hm."}]), "thinking_blocks"),
    (assistant(name=3), "name"),
]


def test_what_clients_add_to_an_assistants_message_is_accepted_and_described(hermes):
    served = hermes("Sunny.")
    described = httpx.get(f"{served.url}/openapi.json").json()
    validator = jsonschema.Draft202012Validator(
        {"$ref": "#/components/schemas/ChatCompletionRequest", "components": described["components"]}
    )
    for message in ACCEPTED:
        body = {"model": "tiny", "messages": [QUESTION, message, RESULT]}
        response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
        assert response.status_code == 200, (message, response.text)
        assert validator.is_valid(body), message
        assert PARIS in served.codec.decode(served.engine.submissions[-1].prompt)
    for message, param in REFUSED:
        body = {"model": "tiny", "messages": [QUESTION, message, RESULT]}
        response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, f"messages[1].{param}")
        assert not validator.is_valid(body), message
