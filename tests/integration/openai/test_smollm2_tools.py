"""SmolLM2, real weights, behind templates that know tools: what was demanded is called, with arguments that match."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support import chat_templates
from support.random_schemas import schemas
from support.smollm2_server import SmolLM2Server, serving_smollm2
from support.tool_model import NOW

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
# With bounds, since at temperature 1 so small a model may write a string without end.
BOUNDED = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def hermes_server() -> Iterator[SmolLM2Server]:
    with serving_smollm2(chat_templates.HERMES) as server:
        yield server


@pytest.fixture(scope="module")
def gemma_server() -> Iterator[SmolLM2Server]:
    with serving_smollm2(chat_templates.GEMMA4) as server:
        yield server


def ask(server: SmolLM2Server, *, stream: bool = False, messages: Any = ASK, **parameters: Any) -> Any:
    """The choice, accumulated by the client's own helper if it is streamed."""
    options = {"max_tokens": 400, "temperature": 1.0, "seed": 1, **parameters}
    with server.client() as client:
        if not stream:
            return client.chat.completions.create(model="smollm2", messages=messages, **options).choices[0]
        with client.chat.completions.stream(model="smollm2", messages=messages, **options) as events:
            for _ in events:
                pass
            return events.get_final_completion().choices[0]


def judged(arguments: str, schema: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator
    jsonschema.validate(json.loads(arguments), schema, validator, format_checker=validator.FORMAT_CHECKER)


@settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(many=st.lists(schemas(), min_size=12, max_size=12))
def test_every_demanded_call_matches_its_random_schema_streamed_and_not(hermes_server, many):
    def valid(place: int) -> None:
        schema = many[place]
        tool = {"type": "function", "function": {"name": "record", "parameters": schema}}
        named = {"type": "function", "function": {"name": "record"}}
        choice = ask(
            hermes_server,
            stream=place % 2 == 0,
            temperature=(0, 1.0, 1.5)[place % 3],
            tools=[NOW, tool],
            tool_choice=named,
        )
        assert choice.finish_reason == "tool_calls", (schema, choice)
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.function.name == "record"
        judged(call.function.arguments, schema)

    with ThreadPoolExecutor(len(many)) as pool:
        list(pool.map(valid, range(len(many))))


@pytest.mark.parametrize("stream", [False, True])
def test_required_calls_one_of_the_tools(hermes_server, stream):
    choice = ask(hermes_server, tools=[BOUNDED], tool_choice="required", parallel_tool_calls=False, stream=stream)
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    judged(call.function.arguments, BOUNDED["function"]["parameters"])


GUESS = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome, Italy", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "at": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        "detail": {
            "type": "object",
            "properties": {"wind": {"type": "boolean"}, "note": {"type": ["null", "boolean"]}},
            "required": ["wind"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "at"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_demanded_of_gemmas_form_is_called_and_matches(gemma_server, stream, seed):
    tool = {"type": "function", "function": {"name": "forecast", "parameters": GUESS, "strict": True}}
    choice = ask(
        gemma_server, tools=[tool], tool_choice="required", parallel_tool_calls=False, stream=stream, seed=seed
    )
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    judged(call.function.arguments, GUESS)


def test_an_agents_loop_goes_round(hermes_server):
    """As OpenAI's guide to function calling has it, with a tool made of a pydantic model."""

    class get_weather(BaseModel):
        city: str

    tool = openai.pydantic_function_tool(get_weather)
    assert tool["function"]["strict"]
    choice = ask(hermes_server, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    call = choice.message.tool_calls[0]
    assert set(json.loads(call.function.arguments)) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees and sunny"}
    history = [*ASK, choice.message.model_dump(exclude_none=True), result]
    answer = ask(hermes_server, messages=history, tools=[tool], tool_choice="none", max_tokens=40)
    assert answer.finish_reason in ("stop", "length")
    assert answer.message.content
    assert answer.message.tool_calls is None
