"""SmolLM2, real weights, held to schemas and grammars: what the openai client gets is judged by others' validators."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support.random_schemas import schemas
from support.smollm2_server import SmolLM2Server, serving_smollm2

ASK = [{"role": "user", "content": "Describe a person as JSON."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "email": {"type": "string", "format": "email", "maxLength": 20},
        "tags": {"type": "array", "items": {"enum": ["old", "young", "tall"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def smollm2_server() -> Iterator[SmolLM2Server]:
    with serving_smollm2() as server:
        yield server


def asked(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def ask(server: SmolLM2Server, *, stream: bool = False, messages: Any = ASK, **parameters: Any) -> tuple[str, str]:
    """The text and why it ended."""
    options = {"max_tokens": 400, "temperature": 1.0, "seed": 1, **parameters}
    with server.client() as client:
        answer = client.chat.completions.create(model="smollm2", messages=messages, stream=stream, **options)
        if not stream:
            return answer.choices[0].message.content, answer.choices[0].finish_reason
        text, finish = "", ""
        for chunk in answer:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        return text, finish


def judged(text: str, schema: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator
    jsonschema.validate(json.loads(text), schema, validator, format_checker=validator.FORMAT_CHECKER)


@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(many=st.lists(schemas(), min_size=16, max_size=16))
def test_every_answer_to_a_random_schema_is_valid_streamed_and_not(smollm2_server, many):
    def valid(place: int) -> None:
        schema = many[place]
        text, finish = ask(
            smollm2_server,
            stream=place % 2 == 0,
            temperature=(0, 1.0, 1.5)[place % 3],
            response_format=asked(schema, strict=place % 4 < 2),
        )
        assert finish == "stop", (schema, text)
        judged(text, schema)

    with ThreadPoolExecutor(len(many)) as pool:
        list(pool.map(valid, range(len(many))))


def test_n_answers_with_log_probabilities_are_each_valid(smollm2_server):
    with smollm2_server.client() as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=ASK, response_format=asked(PERSON), n=3, seed=7, logprobs=True, top_logprobs=2
        )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        judged(choice.message.content, PERSON)
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(token.logprob <= 0 for token in tokens)
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_the_same_seed_gives_the_same_answer_and_streams_the_same(smollm2_server):
    whole = ask(smollm2_server, response_format=asked(PERSON), seed=3)
    assert ask(smollm2_server, response_format=asked(PERSON), seed=3, stream=True) == whole
    judged(whole[0], PERSON)


def test_pydantic_models_are_parsed_by_the_openai_client(smollm2_server):
    class Person(BaseModel):
        age: int
        kind: Literal["cat", "dog"]
        grown: bool

    with smollm2_server.client() as client:
        answer = client.chat.completions.parse(
            model="smollm2", messages=ASK, response_format=Person, temperature=0, max_tokens=100
        )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_json_mode_gives_an_object_or_says_that_it_was_cut(smollm2_server):
    text, finish = ask(smollm2_server, response_format={"type": "json_object"}, temperature=0, max_tokens=60)
    assert text.startswith("{")
    if finish == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert finish == "length"


def test_max_tokens_cut_an_answer_with_finish_reason_length(smollm2_server):
    whole, _ = ask(smollm2_server, response_format=asked(PERSON))
    cut, finish = ask(smollm2_server, response_format=asked(PERSON), max_tokens=5)
    assert finish == "length"
    assert whole.startswith(cut)


def test_stop_strings_cut_an_answer_that_matches_so_far(smollm2_server):
    text, finish = ask(smollm2_server, response_format=asked(PERSON), stop=['"age"'])
    assert finish == "stop"
    assert re.fullmatch(r'\{\s*"name":\s*"[^"]*",\s*', text)


def test_a_bias_towards_the_end_does_not_end_an_answer_early(smollm2_server):
    text, finish = ask(smollm2_server, response_format=asked(PERSON), logit_bias={"2": 100})
    assert finish == "stop"
    judged(text, PERSON)


def test_an_answer_goes_on_after_the_ring_was_lost(smollm2_server):
    undisturbed = ask(smollm2_server, response_format=asked(PERSON), seed=5)
    with smollm2_server.client() as client:
        stream = client.chat.completions.create(
            model="smollm2", messages=ASK, response_format=asked(PERSON), seed=5, max_tokens=400, stream=True
        )
        text = ""
        for place, chunk in enumerate(stream):
            text += chunk.choices[0].delta.content or ""
            if place in (3, 8):
                smollm2_server.ring.break_ring("a member was killed")
    assert text == undisturbed[0]


@pytest.mark.parametrize(
    ("structured", "expected"),
    [
        ({"json": PERSON}, None),
        ({"json": json.dumps({"type": "integer", "minimum": 10, "maximum": 12})}, "1[012]"),
        ({"regex": r"[a-z]{3}-\d{2}"}, "[a-z]{3}-[0-9]{2}"),
        ({"choice": ["positive", "negative"]}, "positive|negative"),
        ({"grammar": 'root ::= "(" [ab]{2} ")"'}, r"\([ab]{2}\)"),
        ({"grammar": 'start: "SELECT " COLUMN " FROM t"\nCOLUMN: "a" | "b"'}, "SELECT [ab] FROM t"),
    ],
)
def test_vllms_structured_outputs_on_both_routes(smollm2_server, structured, expected):
    body = {"structured_outputs": structured}
    chat, finish = ask(smollm2_server, extra_body=body)
    with smollm2_server.client() as client:
        answer = client.completions.create(model="smollm2", prompt="A person:", max_tokens=200, seed=1, extra_body=body)
    assert (finish, answer.choices[0].finish_reason) == ("stop", "stop")
    for text in (chat, answer.choices[0].text):
        judged(text, PERSON) if expected is None else None
        assert expected is None or re.fullmatch(expected, text)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("guided_json", {"type": "boolean"}, "true|false"),
        ("guided_regex", "[xyz]", "[xyz]"),
        ("guided_choice", ["a", "b"], "[ab]"),
        ("guided_grammar", 'root ::= "q"+ "."', r"q+\."),
    ],
)
def test_vllms_older_names_do_the_same(smollm2_server, name, value, expected):
    text, finish = ask(smollm2_server, extra_body={name: value}, temperature=0.5)
    assert finish == "stop"
    assert re.fullmatch(expected, text)


def test_structural_tags_leave_text_free_and_hold_what_follows_a_trigger(smollm2_server):
    tag = {
        "type": "structural_tag",
        "structures": [{"begin": "Once", "schema": {"type": "integer", "maximum": 9, "minimum": 0}, "end": "!"}],
        "triggers": ["On"],
    }
    with smollm2_server.client() as client:
        answer = client.completions.create(
            model="smollm2",
            prompt="A fairy tale. Once upon a time there was a king. The tale begins: Once upon a time. The tale: Once",
            max_tokens=60,
            temperature=0,
            logit_bias={str(smollm2_server.codec.encode(" Once")[0]): 20},
            extra_body={"response_format": tag},
        )
    text = answer.choices[0].text
    assert re.search("Once[0-9]!", text)
    assert not re.search("On(?!ce[0-9](!|$)|ce?$)", text)


def test_response_format_on_completions(smollm2_server):
    with smollm2_server.client() as client:
        answer = client.completions.create(
            model="smollm2", prompt="A person:", max_tokens=300, seed=3, extra_body={"response_format": asked(PERSON)}
        )
    judged(answer.choices[0].text, PERSON)
