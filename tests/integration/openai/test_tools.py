"""Tools through the openai client, over an engine that answers what a model of each family would."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from languagepipes_node.end_model.tools.families import FAMILIES
from pydantic import BaseModel
from support import chat_templates
from support.scripted_engine import saying
from support.tiny_tokenizer import CHATML
from support.tool_model import NOW, WEATHER, codec_of

QUESTION = [{"role": "user", "content": "Weather in Paris?"}]
PARIS = '{"city": "Paris", "days": 3}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
ANSWERS = {
    "hermes": (chat_templates.HERMES, CALL),
    "qwen-xml": (
        chat_templates.QWEN_XML,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
    ),
    "llama3-json": (chat_templates.LLAMA3, f'{{"name": "get_weather", "parameters": {PARIS}}}'),
    "mistral": (chat_templates.MISTRAL_ARGS, f"[TOOL_CALLS]get_weather[ARGS]{PARIS}"),
    "harmony": (
        chat_templates.HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        f"<|constrain|>json<|message|>{PARIS}",
    ),
    "glm": (
        chat_templates.GLM,
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>",
    ),
    "gemma": (
        chat_templates.FUNCTION_GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>",
    ),
    "deepseek": (
        chat_templates.DEEPSEEK_V31,
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
}


class City(BaseModel):
    city: str


def ask(served, **parameters):
    return served.client.chat.completions.create(
        **({"model": "tiny", "messages": QUESTION, "tools": [WEATHER, NOW]} | parameters)
    )


def accumulated(served, **parameters):
    """What the client's own helper makes of a stream, and the chunks."""
    with served.client.chat.completions.stream(
        **({"model": "tiny", "messages": QUESTION, "tools": [WEATHER, NOW]} | parameters)
    ) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        return stream.get_final_completion(), chunks


@pytest.mark.parametrize("family", ANSWERS)
@pytest.mark.parametrize("special", [False, True], ids=["text", "special tokens"])
def test_a_call_of_each_family_reaches_the_client_whole_and_streamed(serve, family, special):
    template, text = ANSWERS[family]
    marks = sorted(FAMILIES[family].markers) if special else []
    codec = codec_of(template, marks)
    served = serve(saying(codec, text), codec=codec, max_context_length=4096)
    whole = ask(served)
    streamed, _ = accumulated(served)
    for answer in (whole, streamed):
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "get_weather")
        assert json.loads(call.function.arguments) == {"city": "Paris", "days": 3}
        assert call.id


def test_calls_are_streamed_by_index_with_id_and_name_first(hermes):
    served = hermes(f"Let me see.\n{CALL}\n" + '<tool_call>{"name": "now", "arguments": {}}</tool_call>')
    chunks = list(ask(served, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", None)
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    of_each = [[call for call in calls if call.index == index] for index in range(2)]
    assert calls == of_each[0] + of_each[1]
    firsts = [deltas[0] for deltas in of_each]
    rest = [call for deltas in of_each for call in deltas[1:]]
    assert [(call.type, call.function.name, call.function.arguments) for call in firsts] == [
        ("function", "get_weather", ""),
        ("function", "now", ""),
    ]
    assert len({call.id for call in firsts}) == 2
    assert all(call.id.startswith("call_") for call in firsts)
    assert {(call.id, call.type, call.function.name) for call in rest} == {(None, None, None)}
    arguments = ["".join(call.function.arguments for call in deltas) for deltas in of_each]
    assert arguments == [PARIS, "{}"]
    assert len(of_each[0]) > 5  # as the model writes them
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]


def test_content_and_calls_come_in_one_message(hermes):
    answer = ask(hermes(f"Let me see.\n{CALL}"))
    assert answer.choices[0].message.content == "Let me see."
    assert len(answer.choices[0].message.tool_calls) == 1
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_without_parallel_calls_the_answer_ends_with_the_first(hermes, stream):
    served = hermes(CALL + CALL, pace_seconds=0.001)
    answer = ask(served, parallel_tool_calls=False) if not stream else accumulated(served, parallel_tool_calls=False)[0]
    assert len(answer.choices[0].message.tool_calls) == 1
    assert answer.choices[0].finish_reason == "tool_calls"
    served.wait_until_idle()
    assert len(served.engine.cancellations) == 1


def test_the_tools_are_in_the_prompt_unless_none_may_be_called(hermes):
    served = hermes()

    def prompt(**parameters) -> str:
        ask(served, **parameters)
        return served.codec.decode(served.engine.submissions[-1].prompt)

    assert "get_weather" in prompt()
    assert "get_weather" in prompt(tool_choice="auto")
    assert "get_weather" not in prompt(tool_choice="none")
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    text = prompt(tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert '"now"' in text
    assert "get_weather" not in text


def test_a_call_that_was_not_allowed_is_content(hermes):
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice = ask(hermes(CALL), tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")
    choice = ask(hermes(CALL), tool_choice="none").choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")


def test_a_malformed_call_is_content(hermes):
    broken = '<tool_call>{"name": "get_weather", "arguments": }</tool_call>'
    choice = ask(hermes(broken)).choices[0]
    assert (choice.message.content, choice.finish_reason) == (broken, "stop")


@pytest.mark.parametrize("family", ANSWERS)
def test_a_call_that_is_cut_by_the_length_stays_a_call_whole_and_streamed(serve, family):
    template, text = ANSWERS[family]
    codec = codec_of(template)
    served = serve(saying(codec, text), codec=codec, max_context_length=4096)
    tokens = len(codec.encode(text[: text.index("Paris") + 3], add_special_tokens=False))
    whole = ask(served, max_tokens=tokens)
    chunks = list(ask(served, max_tokens=tokens, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    streamed = "".join(delta.function.arguments for delta in deltas)
    choice = whole.choices[0]
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, chunks[-1].choices[0].finish_reason) == ("length", "length")
    assert (call.function.name, deltas[0].function.name) == ("get_weather", "get_weather")
    assert call.function.arguments == streamed
    assert '{"city": "Paris", "days": 3}'.startswith(streamed)
    assert streamed.startswith('{"city": "')
    assert choice.message.content is None


@pytest.mark.parametrize("stop", ["days", "Par"])
def test_a_call_that_a_stop_string_cuts_is_not_said_to_be_made(hermes, stop):
    choice = ask(hermes(CALL), stop=[stop]).choices[0]
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, call.function.arguments) == ("stop", PARIS[: PARIS.index(stop)])


def test_each_of_n_answers_has_its_own_calls(hermes):
    served = hermes(CALL + CALL)
    answer = ask(served, n=3)
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == 6
    streamed, chunks = accumulated(served, n=3)
    assert [len(choice.message.tool_calls) for choice in streamed.choices] == [2, 2, 2]
    assert {choice.finish_reason for choice in streamed.choices} == {"tool_calls"}
    calls = [call for chunk in chunks for c in chunk.choices if c.index == 2 for call in c.delta.tool_calls or []]
    assert [call.index for call in calls if call.id] == [0, 1]
    assert [call.index for call in calls] == sorted(call.index for call in calls)


def test_a_stop_string_ends_an_answer_before_its_call(hermes):
    choice = ask(hermes(f"Let me see. {CALL}"), stop=["see"]).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Let me ", "stop")
    assert choice.message.tool_calls is None


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_of_every_token_of_the_answer(hermes, stream):
    served = hermes(f"I see. {CALL}")
    answer = ask(served, logprobs=True, top_logprobs=1, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    scored = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert bytes(byte for token in scored for byte in token.bytes).decode() == f"I see. {CALL}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (chat_templates.HERMES, '"arguments": {"city": "Paris", "days": 3}}'),
        (chat_templates.QWEN_XML, "<parameter=city>\nParis\n</parameter>"),
        (chat_templates.LLAMA3, '"parameters": {"city": "Paris", "days": 3}}'),
        (chat_templates.MISTRAL_ARRAY, '"arguments": {"city": "Paris", "days": 3}, "id": "'),
        (chat_templates.HARMONY, '<|message|>{"city": "Paris", "days": 3}<|call|>'),
        (chat_templates.GLM, "<arg_value>Paris</arg_value>"),
        (chat_templates.GEMMA4, 'get_weather{city:<|"|>Paris<|"|>,days:3}'),
        (chat_templates.DEEPSEEK_V3, '```json\n{"city": "Paris", "days": 3}\n```'),
        (chat_templates.DEEPSEEK_V31, '<｜tool▁sep｜>{"city": "Paris", "days": 3}<｜tool▁call▁end｜>'),
    ],
)
def test_an_answers_calls_and_their_results_go_back_in_the_form_that_the_template_wants(serve, template, expected):
    """Without `tools` in the second request too."""
    codec = codec_of(template)
    served = serve(saying(codec, "Sunny."), codec=codec, max_context_length=4096)
    call = {"id": "call_0123456789", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}
    history = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": "22 degrees"}]},
    ]
    for parameters in ({}, {"tools": None}):
        answer = ask(served, messages=history, **parameters)
        assert answer.choices[0].message.content == "Sunny."
        prompt = codec.decode(served.engine.submissions[-1].prompt)
        assert expected in prompt
        assert "22 degrees" in prompt
        assert "None" not in prompt


def test_calls_go_back_in_the_models_format_where_the_template_leaves_them_out(serve):
    """As SmolLM3's does."""
    template = "{% for tool in tools or [] %}{{ tool }}{% endfor %}{# <tool_call> #}" + CHATML
    codec = codec_of(template)
    served = serve(saying(codec, CALL), codec=codec, max_context_length=4096)
    message = ask(served).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "22 degrees"}
    ask(served, messages=[*QUESTION, message, result])
    prompt = codec.decode(served.engine.submissions[-1].prompt)
    assert CALL in prompt
    assert "22 degrees" in prompt


def test_tools_are_refused_at_once_where_their_calls_could_not_go_back(serve):
    template = "{% for tool in tools or [] %}{{ tool }}{% endfor %}{# <function= #}" + CHATML
    codec = codec_of(template)
    served = serve(saying(codec, "x"), codec=codec, max_context_length=4096)
    body = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER]}
    error = httpx.post(f"{served.url}/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    assert "leaves out calls and their results" in error["message"]
    described = httpx.get(f"{served.url}/openapi.json").json()["components"]["schemas"]["ChatCompletionRequest"]
    assert described["properties"]["tools"]["enum"] == [[], None]


def test_a_template_for_tools_beside_the_default_one_writes_tools_and_calls(serve):
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": chat_templates.HERMES}]
    codec = codec_of(named)
    served = serve(saying(codec, CALL), codec=codec, max_context_length=4096)
    message = ask(served).choices[0].message
    assert message.tool_calls[0].function.name == "get_weather"
    assert '"get_weather"' in codec.decode(served.engine.submissions[-1].prompt)
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "22 degrees"}
    ask(served, messages=[*QUESTION, message, result], tools=None)
    assert CALL in codec.decode(served.engine.submissions[-1].prompt)
    ask(served, tools=None)
    assert codec.decode(served.engine.submissions[-1].prompt).startswith("user\n")


def test_a_template_of_one_call_a_message_gets_several_one_by_one(serve):
    one = chat_templates.HERMES.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message.tool_calls | length > 1 %}"
        "{{ raise_exception('one call at once') }}{% endif %}",
    )
    codec = codec_of(one)
    served = serve(saying(codec, "Sunny."), codec=codec, max_context_length=4096)
    calls = [
        {"id": f"call_{city}", "type": "function", "function": {"name": "now", "arguments": f'{{"in": "{city}"}}'}}
        for city in ("Rome", "Oslo")
    ]
    results = [
        {"role": "tool", "tool_call_id": f"call_{city}", "content": f"late in {city}"} for city in ("Oslo", "Rome")
    ]
    ask(served, messages=[*QUESTION, {"role": "assistant", "content": "Hm.", "tool_calls": calls}, *results])
    prompt = codec.decode(served.engine.submissions[-1].prompt)
    places = [prompt.index(text) for text in ("Hm.", '"Rome"', "late in Rome", '"Oslo"', "late in Oslo")]
    assert places == sorted(places)


def test_an_answer_may_be_sent_back_as_it_came(hermes):
    served = hermes(f"I look. {CALL}")
    message = ask(served).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny", "name": "get_weather"}
    ask(served, messages=[*QUESTION, message.model_dump(), result])
    prompt = served.codec.decode(served.engine.submissions[-1].prompt)
    assert f"I look.{CALL}" in prompt


def test_what_the_client_parsed_may_be_sent_back_as_it_came(hermes):
    served = hermes(f"I look. {CALL}")
    message = served.client.chat.completions.parse(
        model="tiny", messages=QUESTION, tools=[openai.pydantic_function_tool(City, name="get_weather")]
    )
    message = message.choices[0].message
    assert message.model_dump()["tool_calls"][0]["function"]["parsed_arguments"] == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    ask(served, messages=[*QUESTION, message, result])
    answer = {"role": "assistant", "content": "{}", "parsed": {"city": "Paris"}}
    ask(served, messages=[*QUESTION, answer, *QUESTION])


def test_the_model_of_the_tests_ignores_tools_and_says_so(serve, smollm2):
    served = serve(saying(smollm2, "Hello"), codec=smollm2, max_context_length=2048)
    body = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER]}
    response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    assert "its chat template leaves them out" in error["message"]


def test_a_template_that_writes_calls_and_no_tools_says_what_helps(serve):
    """As DeepSeek's do."""
    writes = "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    assert writes in chat_templates.DEEPSEEK_V3
    codec = codec_of(chat_templates.DEEPSEEK_V3.replace(writes, ""))
    served = serve(saying(codec, "x"), codec=codec, max_context_length=2048)
    body = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER]}
    error = httpx.post(f"{served.url}/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    assert "put a chat_template.jinja that writes them beside the model's files" in error["message"]


def test_a_parser_can_be_named_for_a_template_that_tells_nothing(serve):
    silent = (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    codec = codec_of(silent)
    served = serve(saying(codec, CALL), codec=codec, max_context_length=4096)
    body = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER]}
    error = httpx.post(f"{served.url}/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    assert "spec.model.toolParser" in error["message"]
    named = serve(saying(codec, CALL), codec=codec, max_context_length=4096, tool_parser="hermes")
    assert ask(named).choices[0].finish_reason == "tool_calls"


def test_what_the_model_takes_is_described(serve, hermes):
    described = httpx.get(f"{hermes().url}/openapi.json").json()["components"]["schemas"]
    chat = described["ChatCompletionRequest"]["properties"]
    assert chat["tools"]["anyOf"][0]["items"] == {"$ref": "#/components/schemas/FunctionTool"}
    assert described["FunctionTool"]["properties"]["type"]["const"] == "function"
    assert chat["reasoning_effort"]["enum"] == ["none", None]
    assert {"AssistantTurn", "ToolMessage", "AllowedTools", "MessageToolCall"} <= set(described)
    assert not {"Tool", "ToolCall", "ToolChoice"} & set(described)


CLOSED = {**WEATHER["function"]["parameters"], "additionalProperties": False}
STRICT = {"type": "function", "function": {**WEATHER["function"], "parameters": CLOSED, "strict": True}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("parameters", "text", "refused"),
    [
        ({"tool_choice": "required"}, CALL, "Hello"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            CALL,
            CALL.replace("Paris", "P\x00"),
        ),
        ({"tools": [STRICT]}, f"Hello {CALL}", CALL.replace('"days"', '"nights"')),
        ({"tools": [STRICT], "response_format": {"type": "json_object"}}, '{"a": 1}', "Hello"),
    ],
)
def test_the_engine_is_given_a_grammar_of_what_was_demanded(hermes, parameters, text, refused):
    served = hermes(CALL)
    ask(served, **parameters)
    submission = served.engine.submissions[-1]

    def allows(answer: str) -> bool:
        state = submission.grammar.start(submission.stop_token_ids)
        for token in served.codec.encode(answer):
            if state.mask()[token]:
                return False
            state.accept(token)
        return state.is_over or any(not state.mask()[stop] for stop in submission.stop_token_ids)

    assert allows(text)
    assert not allows(refused)


def test_without_demands_the_engine_is_given_no_grammar(hermes):
    served = hermes()
    ask(served)
    assert served.engine.submissions[-1].grammar is None


def test_what_no_grammar_keeps_is_refused(hermes):
    served = hermes()
    unkept = {"type": "object", "properties": {"a": {"not": {}}}}
    tools = [WEATHER, {"type": "function", "function": {"name": "f", "parameters": unkept, "strict": True}}]
    for choice in ("auto", "required"):
        body = {"model": "tiny", "messages": QUESTION, "tools": tools, "tool_choice": choice}
        response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "tools[1].function.parameters.properties.a.not"
        assert error["code"] == "unsupported_parameter"
    assert served.engine.submissions == []


BROKEN = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}, "required": ["a"]}
ALTERNATIVES = {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}, {"minLength": 1}]}}}


@pytest.mark.parametrize("schema", [BROKEN, ALTERNATIVES])
def test_a_strict_tool_whose_schema_does_not_compile_is_named(hermes, schema):
    served = hermes()
    tools = [WEATHER, NOW, {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]
    for choice in ("auto", "required"):
        body = {"model": "tiny", "messages": QUESTION, "tools": tools, "tool_choice": choice}
        response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"].startswith("tools[2].function.parameters.properties.a"), error
    body = {"model": "tiny", "input": "hi", "tools": [{"type": "function", **tools[2]["function"]}]}
    error = httpx.post(f"{served.url}/v1/responses", json=body).json()["error"]
    assert error["param"].startswith("tools[0].parameters.properties.a"), error
    assert served.engine.submissions == []


@pytest.mark.parametrize(
    "schema", [BROKEN, ALTERNATIVES, {"properties": {"a": {"type": "array", "uniqueItems": True}}}]
)
def test_a_demanded_tool_that_is_not_strict_need_not_have_a_schema_that_can_be_kept(hermes, schema):
    served = hermes()
    tools = [WEATHER, {"type": "function", "function": {"name": "f", "parameters": schema}}]
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        ask(served, tools=tools, tool_choice=choice)
        submission = served.engine.submissions[-1]

        def allows(text, submission=submission):
            state = submission.grammar.start(submission.stop_token_ids)
            for token in served.codec.encode(text):
                if state.mask()[token]:
                    return False
                state.accept(token)
            return True

        assert allows('<tool_call>\n{"name": "f", "arguments": {"b": 1}}\n</tool_call>')
        assert not allows('<tool_call>\n{"name": "f", "arguments": 1')
        assert not allows('<tool_call>\n{"name": "get_weather", "arguments": {"city": 1')


def test_what_gemmas_form_does_not_keep_is_refused_with_its_place(serve):
    codec = codec_of(chat_templates.GEMMA4)
    served = serve(saying(codec, "x"), codec=codec, max_context_length=4096)
    named = {"type": "string", "minLength": 3}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"properties": {"a": named}}}}
    body = {"model": "tiny", "messages": QUESTION, "tools": [NOW, tool], "tool_choice": "required"}
    error = httpx.post(f"{served.url}/v1/chat/completions", json=body).json()["error"]
    assert error["code"] == "unsupported_parameter"
    assert error["param"] == "tools[1].function.parameters.properties.a.minLength"
